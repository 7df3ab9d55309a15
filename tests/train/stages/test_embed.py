"""Embedding against sentence-transformers' formulas written by hand, and rows of every form."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import BertForMaskedLM

from danlu.core.errors import ConfigError, DataError, TrainError
from danlu.core.events import Events, Silent
from danlu.models.encode import embed
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.models.save import save_model
from danlu.train.lora import LoraConfig
from danlu.train.related import encode_rows, sentence_model
from danlu.train.settings import Job
from danlu.train.stages.embed import EmbedderConfig, cosent_loss, score, summed_loss, train, vectors_of
from danlu.train.texts import TuningOptim
from tests.models.encoders import save_encoder

ROWS: list[dict[str, Any]] = [
    {"anchor": "a cat", "positive": "the cat sat", "negative": "the dog sat"},
    {"anchor": "dog", "positive": "dogs walked", "negatives": ["cats walked"]},
    {"anchor": "ann lee", "positive": "ann met lee", "negative_1": "paris", "negative_2": "mat"},
    {"anchor": "猫", "positive": "猫坐在垫子上", "negative": "狗坐在垫子上"},
    {"query": "paris", "positive": "in paris"},
    {"anchor": "b c", "positive": "a b c"},
]
SCORED = [{**row, "score": score} for row, score in zip(ROWS, (1.0, 0.5, 0.5, 0.2, 0.0, 0.9), strict=True)]
PLAIN = TuningOptim(learning_rate=3e-3, weight_decay=0.0, warmup_steps=0, schedule="constant", clip_norm=None)
CONFIG = EmbedderConfig(steps=10, rows_per_step=6, optim=PLAIN, precision="fp32")


def job(folder: Path) -> Job:
    return Job(work=folder / "work", log_path=folder / "log.jsonl", events=Events(display=Silent()), seed=3)


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("body")
    save_encoder(folder, BertForMaskedLM, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    return folder


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without dropout."""
    folder = tmp_path_factory.mktemp("still")
    save_encoder(folder, BertForMaskedLM, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return folder


def fresh(body: Path, **options: Any) -> Model:
    return sentence_model(load_model(body, precision="fp32"), source=body, **options)


def texts() -> tuple[list[str], list[str], list[str]]:
    negatives = ["the dog sat", "cats walked", "paris", "mat", "狗坐在垫子上"]
    return [row.get("anchor", row.get("query")) for row in ROWS], [row["positive"] for row in ROWS], negatives


def test_the_contrastive_loss_is_the_formula_of_multiple_negatives(body: Path) -> None:
    model = fresh(body)
    items = encode_rows(ROWS, model).items
    anchors, positives, negatives = (embed(model, some) for some in texts())
    candidates = torch.cat([positives, negatives])
    scores = torch.stack([cosine_similarity(row.unsqueeze(0), candidates) for row in anchors]) * 20.0
    forward = cross_entropy(scores, torch.arange(6))
    backward = cross_entropy((scores[:, :6]).t(), torch.arange(6))
    vectors = vectors_of(model, items, None)
    torch.testing.assert_close(summed_loss(vectors, items, CONFIG) / 6, forward)
    both = dataclasses.replace(CONFIG, both_ways=True)
    torch.testing.assert_close(summed_loss(vectors, items, both) / 6, (forward + backward) / 2)


def test_matryoshka_is_the_sum_over_cut_vectors(body: Path) -> None:
    model = fresh(body)
    items = encode_rows(ROWS[4:], model).items
    anchors, positives = (embed(model, some) for some in (["paris", "b c"], ["in paris", "a b c"]))
    expected = sum(
        cross_entropy(20 * torch.stack([cosine_similarity(a[:d], positives[:, :d]) for a in anchors]), torch.arange(2))
        for d in (8, 32)
    )
    config = dataclasses.replace(CONFIG, matryoshka=(8, 32))
    torch.testing.assert_close(summed_loss(vectors_of(model, items, None), items, config) / 2, expected)


def test_cosent_is_the_published_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 5, 7, generator=generator)
    scores = torch.tensor([0.1, 0.9, 0.9, 0.4, 0.0])
    cosines = cosine_similarity(first, second) * 20
    total = 1.0 + sum(
        float(torch.exp(cosines[i] - cosines[j])) for i in range(5) for j in range(5) if scores[i] < scores[j]
    )
    found = cosent_loss(first, second, scores, temperature=0.05) / 5
    torch.testing.assert_close(found, torch.tensor(total).log())


@pytest.mark.parametrize("loss", ["contrastive", "cosent", "cosine"])
def test_micro_batches_change_neither_loss_nor_gradients(still: Path, tmp_path: Path, loss: Any) -> None:
    states: list[dict[str, torch.Tensor]] = []
    losses: list[float] = []
    for micro_tokens in (None, 7):
        model = fresh(still)
        config = dataclasses.replace(
            CONFIG, steps=1, micro_tokens=micro_tokens, loss=loss,
            optim=dataclasses.replace(PLAIN, name="sgd", momentum=0.0, learning_rate=0.1),
        )  # fmt: skip
        items = encode_rows(SCORED, model, scored=config.is_scored).items
        losses.append(train(model, items, [], config, job(tmp_path / str(micro_tokens)))["first_loss"])
        states.append(dict(model.network.state_dict()))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=2e-6, rtol=0, msg=name)


def test_the_second_pass_of_a_part_drops_the_same_numbers(body: Path) -> None:
    """Otherwise gradients would be those of other vectors than the loss saw: compared with finite differences."""
    model = fresh(body)
    items = encode_rows(ROWS, model).items
    weight = dict(model.network.named_parameters())["stack.blocks.1.feedforward.inner.down.weight"]
    weight.requires_grad_(True)
    model.network.train()

    def loss() -> torch.Tensor:
        torch.manual_seed(5)
        return summed_loss(vectors_of(model, items, 9), items, CONFIG)

    loss().backward()
    assert weight.grad is not None
    direction = weight.grad / weight.grad.norm()
    with torch.no_grad():
        weight += 1e-2 * direction
        above = loss()
        weight -= 2e-2 * direction
        slope = (above - loss()) / 2e-2
    assert float(slope) == pytest.approx(float(weight.grad.norm()), rel=2e-2)


def test_a_model_learns_and_is_a_sentence_transformers_folder_afterwards(still: Path, tmp_path: Path) -> None:
    model = fresh(still, max_row_tokens=12, prompts={"query": "a ", "passage": ""})
    items = encode_rows(ROWS, model).items
    config = dataclasses.replace(CONFIG, steps=60, matryoshka=(8, 32))
    metrics = train(model, items, items, config, job(tmp_path))
    assert metrics["validation"]["recall_at_1"] == metrics["validation"]["mrr"] == 1.0
    assert metrics["validation"]["mrr_8"] > 0.9
    save_model(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved", precision="fp32")
    assert again.sentence == model.sentence
    torch.testing.assert_close(embed(again, ["dog"], prompt="query"), embed(model, ["dog"], prompt="query"))
    kinds = [module["type"].rpartition(".")[2] for module in json.loads((tmp_path / "saved/modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", "Normalize"]


def test_prompts_are_read_in_training_as_in_serving(body: Path) -> None:
    model = fresh(body, prompts={"query": "a cat ", "passage": "the "})
    (item,) = encode_rows([{"anchor": " dog", "positive": "mat"}], model).items
    encode = model.chat.tokenizer.encode_with_specials
    assert item.anchor == encode("a cat dog")
    assert item.positive == encode("the mat")
    expected = torch.cat([embed(model, ["dog"], prompt="query"), embed(model, ["mat"], prompt="passage")])
    with torch.no_grad():
        torch.testing.assert_close(vectors_of(model, [item], None), expected)


def test_an_equal_right_answer_is_no_negative_and_ranks_as_right(body: Path) -> None:
    model = fresh(body)
    rows = [{"anchor": "dog", "positive": "dogs"}, {"anchor": "dog", "positive": "a dog"}]
    items = encode_rows(rows, model).items
    found = score(model, items, CONFIG)
    assert found["recall_at_1"] == 1.0
    assert found["loss"] == pytest.approx(0.0, abs=1e-6)


def test_scores_are_ranked_and_adapters_train(still: Path, tmp_path: Path) -> None:
    model = fresh(still)
    items = encode_rows(SCORED, model, scored=True).items
    config = dataclasses.replace(
        CONFIG, steps=60, loss="cosent", lora=LoraConfig(), optim=dataclasses.replace(PLAIN, learning_rate=2e-2)
    )
    assert train(model, items, items, config, job(tmp_path))["validation"]["spearman"] > 0.9


def test_rows_that_cannot_be_learnt_are_left_out_and_counted(body: Path) -> None:
    model = fresh(body, max_row_tokens=6)
    rows = [{"anchor": "a"}, {"anchor": "a", "positive": "b", "negative": " "}, {"anchor": "a", "positive": "b " * 9}]
    found = encode_rows(rows, model)
    assert (found.left_out, found.truncated, len(found.items)) == ({"empty": 2}, 1, 1)
    assert encode_rows([*rows, *SCORED], model, scored=True).left_out == {"empty": 2, "no_score": 1}
    with pytest.raises(TrainError, match=r"No row can be trained on: 1 empty\. A row needs anchor"):
        encode_rows(rows[:1], model)
    with pytest.raises(DataError, match=r"A row has the score 'high'\. Scores are numbers"):
        encode_rows([{"anchor": "a", "positive": "b", "score": "high"}], model, scored=True)


def test_models_and_settings_that_cannot_embed_are_refused(body: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"This model gives no sentence vectors\. Make it one: sentence_model"):
        encode_rows(ROWS, load_model(body, precision="fp32"))
    model = fresh(body)
    with pytest.raises(ConfigError, match=r"matryoshka is \[64\], vectors have 32 numbers\. Use 1 to that"):
        config = dataclasses.replace(CONFIG, matryoshka=(64,))
        train(model, encode_rows(ROWS, model).items, [], config, job(tmp_path))
    with pytest.raises(ConfigError, match=r"rows_per_step is 1\. A contrastive batch needs other rows"):
        EmbedderConfig(rows_per_step=1)
    with pytest.raises(ConfigError, match=r"temperature is 0\. Use a positive number"):
        EmbedderConfig(temperature=0)
    with pytest.raises(ConfigError, match=r"max_row_tokens is 0\. Use 1 or more"):
        EmbedderConfig(max_row_tokens=0)
