"""One class for Python users: what each head allows, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import danlu
from danlu.core.errors import ModelError, RequestError
from danlu.core.records import GenerateOptions
from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel
from danlu.models.save import save_model
from tests.models.case import randomised
from tests.models.cases import decoders, encoders
from tests.models.cases.seq2seq import T5_SIZES, padded
from tests.models.peer import some_ids
from tests.tiny import make_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [some_ids(length, seed=length, vocabulary=90) for length in (7, 3, 11)]


def saved(peer: Any, folder: Path) -> tuple[Any, LoadedModel]:
    torch.manual_seed(0)
    randomised(peer.eval()).save_pretrained(folder)
    return peer, LoadedModel(load_model(folder, precision="fp32"))


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> tuple[Any, LoadedModel]:
    """A tiny T5 with a tokenizer that ends every source."""
    folder = tmp_path_factory.mktemp("t5")
    tokenizer = make_tokenizer()
    end = tokenizer.token_to_id("<|im_end|>")
    tokenizer.post_processor = TemplateProcessing(single="$A <|im_end|>", special_tokens=[("<|im_end|>", end)])  # pyright: ignore[reportAttributeAccessIssue]
    sizes = {**T5_SIZES, "num_decoder_layers": 2, "vocab_size": tokenizer.get_vocab_size(with_added_tokens=True)}
    peer = T5ForConditionalGeneration(T5Config(**sizes, eos_token_id=end))
    saved(peer, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return peer, LoadedModel(load_model(folder, precision="fp32"))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_logits(side: Any, tmp_path: Path) -> None:
    peer, ours = saved(LlamaForCausalLM(LlamaConfig(**decoders.SIZES)), tmp_path)
    ids, mask = padded(ROWS, 0, side)
    found, hidden = ours.logits(ids, mask), ours.hidden(ids, mask)
    assert found.shape == (3, 11, 100)
    for row, kept, logits, states in zip(ROWS, mask.bool(), found, hidden, strict=True):
        with torch.no_grad():
            expected = peer(torch.tensor([row]), output_hidden_states=True)
        torch.testing.assert_close(logits[kept], expected.logits[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(states[kept], expected.hidden_states[-1][0], atol=1e-4, rtol=1e-4)
        assert not logits[~kept].any()


def test_a_model_without_a_tokenizer_reads_and_writes_ids(tmp_path: Path) -> None:
    peer, _ = saved(LlamaForCausalLM(LlamaConfig(**decoders.SIZES)), tmp_path)
    ours = danlu.load(tmp_path, tokenizer=None)
    ids = torch.tensor(ROWS[:1])
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ids).float(), peer(ids).logits, atol=0.2, rtol=0.1)  # perhaps bf16
    (answer,) = ours.generate(ROWS[:1], GenerateOptions(max_tokens=5, ignore_eos=True))
    assert (len(answer.token_ids), answer.text) == (5, "")
    with pytest.raises(ModelError, match="This model has no tokenizer"):
        ours.generate(["text"])
    with pytest.raises(RequestError, match=r"Token id 100 is not of this model. Ids are 0 to 99"):
        ours.generate([[1, 100]])
    with pytest.raises(RequestError, match="stop is given, but this model has no tokenizer"):
        ours.generate(ROWS, GenerateOptions(stop=("a",)))


def test_a_tokenizer_can_be_left_out(tiny_folder: Path) -> None:
    assert danlu.load(tiny_folder).model.has_tokenizer
    assert not danlu.load(tiny_folder, tokenizer=None).model.has_tokenizer


def test_each_head_says_what_it_is_when_asked_for_something_else(tmp_path: Path) -> None:
    _, llama = saved(LlamaForCausalLM(LlamaConfig(**decoders.SIZES)), tmp_path / "lm")
    for ask, lacks in ((llama.embed, "embeds no text"), (llama.classify, "classifies no text"), (llama.tag, "tags no")):
        with pytest.raises(ModelError, match=f"{lacks}.*: it has a head of kind LM"):
            ask(["a"])
    _, classifier = saved(BertForSequenceClassification(BertConfig(**encoders.SIZES)), tmp_path / "cls")
    with pytest.raises(ModelError, match="This model writes no text: it has a head of kind Classify"):
        classifier.generate([[1, 2]])
    with pytest.raises(ModelError, match="This model writes no text: it has a head of kind Classify"):
        classifier.score([[1, 2]], ["a"])
    assert classifier.logits(torch.tensor(ROWS[:1])).shape == (1, 2)
    _, tagger = saved(BertForTokenClassification(BertConfig(**encoders.SIZES, num_labels=5)), tmp_path / "tag")
    assert tagger.logits(*padded(ROWS, 0, "left")).shape == (3, 11, 5)
    _, bare = saved(BertModel(BertConfig(**encoders.SIZES), add_pooling_layer=False), tmp_path / "bare")
    assert bare.hidden(torch.tensor(ROWS[:1])).shape == (1, 7, 32)
    with pytest.raises(ModelError, match=r"This model gives no logits: it has no head\. Use hidden or embed"):
        bare.logits(torch.tensor(ROWS[:1]))


def test_masks_that_fit_nothing_are_refused(translator: tuple[Any, LoadedModel]) -> None:
    _, ours = translator
    ids = torch.tensor(ROWS[:1])
    with pytest.raises(RequestError, match=r"ids are \(1, 7\), mask is \(1, 6\)"):
        ours.hidden(ids, torch.ones(1, 6))
    with pytest.raises(RequestError, match="A row has no real token"):
        ours.hidden(ids, torch.zeros(1, 7))


# ---- encoder-decoders ------------------------------------------------------------------------------------------------


def test_a_source_and_its_targets_give_the_logits_of_transformers(translator: tuple[Any, LoadedModel]) -> None:
    peer, ours = translator
    targets = torch.tensor([[0, 5, 9], [0, 1, 2], [0, 7, 7]])
    for side in ("left", "right"):
        ids, mask = padded(ROWS, 0, side)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            expected = peer(input_ids=ids, attention_mask=mask, decoder_input_ids=targets)
        torch.testing.assert_close(ours.logits(ids, mask, targets=targets), expected.logits, atol=1e-4, rtol=1e-4)
        states = ours.hidden(ids, mask)[mask.bool()]
        expected = expected.encoder_last_hidden_state[mask.bool()]
        torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(RequestError, match=r"reads a source and writes a target\. Give targets"):
        ours.logits(ids, mask)


def test_greedy_translations_are_those_of_transformers(translator: tuple[Any, LoadedModel]) -> None:
    peer, ours = translator
    texts = ["The navy lace dress", "a", "面料是纯棉的, with pockets and a hood"]
    sources = [ours.model.chat.tokenizer.encode_with_specials(text)[0] for text in texts]
    ids, mask = padded(sources, 0, "left")
    expected = peer.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=15)
    answers = ours.generate(texts, GenerateOptions(max_tokens=15))
    for source, answer, tokens in zip(sources, answers, expected.tolist(), strict=True):
        assert list(answer.token_ids) == tokens[1 : 1 + len(answer.token_ids)]
        assert answer.usage.prompt_tokens == len(source)
    assert answers == [ours.generate([source], GenerateOptions(max_tokens=15))[0] for source in sources]
    deltas = list(ours.stream(texts[0], GenerateOptions(max_tokens=15)))
    assert "".join(delta.text for delta in deltas) == answers[0].text
    assert ours.generate(texts, GenerateOptions(max_tokens=15, lookup_tokens=4)) == answers


def test_a_target_is_scored_after_its_source(translator: tuple[Any, LoadedModel]) -> None:
    peer, ours = translator
    tokenizer = ours.model.chat.tokenizer
    source, target = tokenizer.encode_with_specials("The navy")[0], tokenizer.encode("lace dress")
    with torch.no_grad():
        logits = peer(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[0, *target]])).logits[0]
    expected = torch.log_softmax(logits[:-1], dim=-1).gather(1, torch.tensor(target)[:, None]).squeeze(1)
    (score,) = ours.score(["The navy"], ["lace dress"])
    assert score.token_logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_model_that_does_not_say_how_answers_start_is_refused(tmp_path: Path) -> None:
    sizes = {key: value for key, value in T5_SIZES.items() if key != "decoder_start_token_id"}
    _, ours = saved(T5ForConditionalGeneration(T5Config(**sizes)), tmp_path)
    with pytest.raises(ModelError, match=r"does not say which token its answers start with.*decoder_start_token_id"):
        ours.generate([[5, 6]])


def test_what_a_model_says_of_generation_survives_saving(translator: tuple[Any, LoadedModel], tmp_path: Path) -> None:
    _, ours = translator
    save_model(ours.model, tmp_path)
    again = load_model(tmp_path, precision="fp32").generation
    assert (again.start_id, again.end_ids) == (ours.model.generation.start_id, ours.model.generation.end_ids)
    assert ours.own_options(max_tokens=7) == GenerateOptions(max_tokens=7)
