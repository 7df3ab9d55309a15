"""What encoders are asked, against transformers."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
    TokenClassificationPipeline,
)

from danlu.core.errors import ModelError, RequestError
from danlu.models.encode import classify, embed, encode_texts, hidden_states, packs, rank, tag
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.models.save import save_model
from tests.models.encoders import TEXTS, save_encoder, save_sentence

pytestmark = pytest.mark.usefixtures("one_thread")
TAGS = {"id2label": dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]))}


def load(folder: Path) -> Model:
    return load_model(folder, precision="fp32")


def test_packs_hold_rows_of_like_length_under_the_budget() -> None:
    assert packs([3, 9, 1, 4, 20, 4], 10) == [[4], [1], [3, 5], [0, 2]]
    assert packs([], 10) == []


@pytest.fixture
def sentence_folder(tmp_path: Path) -> tuple[Path, PreTrainedModel, object]:
    peer, tokenizer = save_encoder(tmp_path / "model", BertModel)
    save_sentence(tmp_path / "model")
    return tmp_path / "model", peer, tokenizer


@pytest.mark.parametrize("pack_tokens", [1, 12, 4096])
def test_vectors_are_those_of_transformers_whatever_is_packed_together(
    sentence_folder: tuple[Path, PreTrainedModel, object], pack_tokens: int
) -> None:
    folder, peer, tokenizer = sentence_folder
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=10, return_tensors="pt")  # pyright: ignore[reportCallIssue]
    with torch.no_grad():
        hidden = peer(**batch).last_hidden_state
    real = batch["attention_mask"].unsqueeze(-1)
    expected = torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)
    model = load(folder)
    ours = embed(model, TEXTS, pack_tokens=pack_tokens)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    backwards = embed(model, TEXTS[::-1], pack_tokens=pack_tokens)
    torch.testing.assert_close(backwards.flip(0), ours, atol=1e-5, rtol=1e-5)


def test_no_text_is_no_vector(sentence_folder: tuple[Path, PreTrainedModel, object]) -> None:
    assert embed(load(sentence_folder[0]), []).shape == (0, 32)


def test_a_text_beyond_the_limit_is_cut_or_refused(sentence_folder: tuple[Path, PreTrainedModel, object]) -> None:
    model = load(sentence_folder[0])
    long, short = "cat " * 30, "cat " * 8
    assert torch.equal(embed(model, [long]), embed(model, [short]))
    with pytest.raises(
        RequestError, match=r"Text 1 has 32 tokens, the model reads 10\. Shorten it, or allow truncation"
    ):
        embed(model, [short, long], truncate=False)


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_labels_come_with_their_probabilities_the_likeliest_first(tmp_path: Path, problem: str) -> None:
    names = {"id2label": {0: "good", 1: "bad", 2: "so-so"}, "problem_type": problem}
    peer, tokenizer = save_encoder(tmp_path, BertForSequenceClassification, **names)
    pairs = [("the cat", "the dog met ann"), ("猫", "狗")]
    texts = [*TEXTS, *pairs]
    for text, found in zip(texts, classify(load(tmp_path), texts), strict=True):
        batch = (
            tokenizer(*text, return_tensors="pt") if isinstance(text, tuple) else tokenizer(text, return_tensors="pt")
        )
        with torch.no_grad():
            logits = peer(**batch).logits[0]
        expected = logits.softmax(-1) if problem.startswith("single") else logits.sigmoid()
        assert [one.label for one in found] == [
            names["id2label"][i] for i in expected.argsort(descending=True).tolist()
        ]
        shares = sorted(expected.tolist(), reverse=True)
        assert [one.probability for one in found] == pytest.approx(shares, abs=1e-5)


def test_a_saved_classifier_reads_pairs_alike_in_transformers(tmp_path: Path) -> None:
    save_encoder(tmp_path / "one", BertForSequenceClassification, num_labels=1)
    model = load(tmp_path / "one")
    save_model(model, tmp_path / "two")
    peer = BertForSequenceClassification.from_pretrained(tmp_path / "two").eval()
    batch = AutoTokenizer.from_pretrained(tmp_path / "two")("the cat", "the dog met ann", return_tensors="pt")
    with torch.no_grad():
        expected = peer(**batch).logits[:, 0].sigmoid()
    torch.testing.assert_close(rank(model, "the cat", ["the dog met ann"]), expected, atol=1e-5, rtol=1e-5)


def test_ranking_is_the_sigmoid_of_the_one_logit_of_each_pair(tmp_path: Path) -> None:
    peer, tokenizer = save_encoder(tmp_path, BertForSequenceClassification, num_labels=1)
    batch = tokenizer(["the cat"] * 5, TEXTS, padding=True, truncation=True, max_length=24, return_tensors="pt")
    with torch.no_grad():
        expected = peer(**batch).logits[:, 0].sigmoid()
    model = load(tmp_path)
    torch.testing.assert_close(rank(model, "the cat", TEXTS), expected, atol=1e-5, rtol=1e-5)
    assert rank(model, "the cat", []).shape == (0,)


def test_spans_are_those_of_the_pipeline_of_transformers(tmp_path: Path) -> None:
    peer, tokenizer = save_encoder(tmp_path, BertForTokenClassification, **TAGS)
    pipeline = TokenClassificationPipeline(model=peer, tokenizer=tokenizer, aggregation_strategy="first")  # pyright: ignore[reportArgumentType]
    found = tag(load(tmp_path), TEXTS)
    assert sum(len(spans) for spans in found) > 3
    for text, spans in zip(TEXTS, found, strict=True):
        expected = [(one["start"], one["end"], one["entity_group"], one["score"]) for one in pipeline(text)]  # pyright: ignore
        assert [(s.start, s.end, s.label) for s in spans] == [one[:3] for one in expected]
        assert [s.score for s in spans] == pytest.approx([float(one[3]) for one in expected], abs=1e-5)


def test_typed_names_of_special_tokens_stay_text(tmp_path: Path) -> None:
    save_encoder(tmp_path, BertModel)
    assert encode_texts(load(tmp_path), ["the [MASK]"])[0][0].count(4) == 0


def test_token_ids_among_texts_are_rows_as_they_are(tmp_path: Path) -> None:
    save_encoder(tmp_path, BertModel)
    model = load(tmp_path)
    texts = ["the cat", [2, 7, 3], ("a", "dog"), [5] * 30]
    found = encode_texts(model, texts)
    assert found[0] == encode_texts(model, ["the cat"])[0]
    assert found[1] == ([2, 7, 3], [0, 0, 0])
    assert found[2] == encode_texts(model, [("a", "dog")])[0]
    assert found[3][0] == [5] * 24
    with pytest.raises(RequestError, match="Text 3 has 30 tokens, the model reads 24"):
        encode_texts(model, texts, truncate=False)
    with pytest.raises(RequestError, match=r"Text 1 has the token id -1\. Ids of this model are 0 to"):
        encode_texts(model, ["a", [-1]])
    with pytest.raises(RequestError, match=r"Text 0 is empty\. Leave it out"):
        encode_texts(model, [[]])


def test_a_cross_encoder_of_two_labels_ranks_by_the_second(tmp_path: Path) -> None:
    save_encoder(tmp_path, BertForSequenceClassification, num_labels=2)
    model = load(tmp_path)
    shares = [{s.label: s.probability for s in one} for one in classify(model, [("the cat", t) for t in TEXTS])]
    assert rank(model, "the cat", TEXTS).tolist() == pytest.approx([one["LABEL_1"] for one in shares], abs=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_hidden_states_of_padded_rows_do_not_depend_on_the_side_of_the_padding(tmp_path: Path, side: str) -> None:
    peer, _ = save_encoder(tmp_path, BertModel)
    model = load(tmp_path)
    ids, mask = torch.zeros(2, 6, dtype=torch.long), torch.zeros(2, 6, dtype=torch.long)
    rows = [[2, 7, 8, 3], [2, 9, 10, 11, 12, 3]]
    for i, row in enumerate(rows):
        place = slice(6 - len(row), 6) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    types = (ids == 3).long()
    hidden = hidden_states(model, ids, mask, types)
    for i, row in enumerate(rows):
        with torch.no_grad():
            alone = peer(torch.tensor([row]), token_type_ids=types[i, mask[i].bool()].unsqueeze(0)).last_hidden_state[0]
        torch.testing.assert_close(hidden[i, mask[i].bool()], alone, atol=1e-5, rtol=1e-5)
    assert bool((hidden[~mask.bool()] == 0).all())
    with pytest.raises(RequestError, match="A row has no real token"):
        hidden_states(model, ids, torch.zeros_like(mask))


def test_a_model_is_asked_only_what_its_head_answers(tmp_path: Path) -> None:
    save_encoder(tmp_path / "classes", BertForSequenceClassification, num_labels=3)
    model = load(tmp_path / "classes")
    with pytest.raises(ModelError, match=r"This model embeds nothing\. Use a sentence model"):
        embed(model, ["the cat"])
    with pytest.raises(ModelError, match=r"This model tags nothing\. Use a …ForTokenClassification model"):
        tag(model, ["the cat"])
    with pytest.raises(ModelError, match=r"This model has 3 labels\. Ranking needs a model with one or two"):
        rank(model, "the cat", ["a dog"])
    save_encoder(tmp_path / "bare", BertModel)
    model = load(tmp_path / "bare")
    with pytest.raises(ModelError, match="This model classifies nothing"):
        classify(model, ["the cat"])
    with pytest.raises(ModelError, match="This model ranks nothing"):
        rank(model, "the cat", ["a dog"])


@pytest.mark.model
def test_the_real_minilm_answers_as_transformers_does(minilm: Path, tmp_path: Path) -> None:
    texts = [
        "A cat sits on the mat.", "Hi", "一只猫坐在垫子上。", "上海今天下雨，记得带伞。", "word " * 400,
        "The stock market fell sharply on Monday, analysts say, after a week of worries about the banks.",
    ]  # fmt: skip
    peer, tokenizer = AutoModel.from_pretrained(minilm).eval(), AutoTokenizer.from_pretrained(minilm)
    batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        hidden = peer(**batch).last_hidden_state
    real = batch["attention_mask"].unsqueeze(-1)
    expected = torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)
    model = load(minilm)
    ours = embed(model, texts)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat([embed(model, [text]) for text in texts]), ours, atol=1e-5, rtol=0)
    assert model.unused == ("pooler.dense.bias", "pooler.dense.weight")
    save_model(model, tmp_path / "saved")
    assert torch.equal(embed(load(tmp_path / "saved"), texts), ours)
    again = AutoModel.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).last_hidden_state, hidden, atol=1e-5, rtol=0)
