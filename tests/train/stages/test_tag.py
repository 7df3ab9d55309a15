"""Tagging against transformers' own loss, and rows of words and of spans."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM, BertForTokenClassification

from danlu.core.errors import ConfigError, DataError, TrainError
from danlu.core.events import Events, Silent
from danlu.models.encode import tag
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.models.rehead import with_head
from danlu.models.save import save_model
from danlu.train.settings import Job
from danlu.train.stages.tag import TaggerConfig, logits_of, targets_of, train
from danlu.train.tagged import encode_rows, tags_of
from danlu.train.texts import TuningOptim
from tests.models.encoders import save_encoder

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ROWS: list[dict[str, Any]] = [
    {"tokens": ["ann", "lee", "met", "a", "cat"], "tags": ["B-PER", "I-PER", "O", "O", "O"]},
    {"tokens": ["the", "dogs", "walked", "in", "paris"], "tags": ["O", "O", "O", "O", "B-LOC"]},
    {"tokens": ["lee", "sat"], "tags": ["B-PER", "O"]},
    {"text": "ann met lee in paris.", "spans": [
        {"start": 0, "end": 3, "label": "PER"}, {"start": 8, "end": 11, "label": "PER"},
        {"start": 15, "end": 20, "label": "LOC"},
    ]},
]  # fmt: skip
PLAIN = TuningOptim(learning_rate=3e-3, weight_decay=0.0, warmup_steps=0, schedule="constant", clip_norm=None)
CONFIG = TaggerConfig(steps=10, rows_per_step=4, optim=PLAIN, precision="fp32")


def job(folder: Path) -> Job:
    return Job(work=folder / "work", log_path=folder / "log.jsonl", events=Events(display=Silent()), seed=3)


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("body")
    save_encoder(folder, BertForMaskedLM, **STILL)
    return folder


def tagger(body: Path, labels: tuple[str, ...] = ()) -> Model:
    return with_head(load_model(body, precision="fp32"), tags_of(ROWS, labels), seed=1, source=body)


def pieces(model: Model, row: dict[str, Any]) -> list[tuple[str, str]]:
    """Supervised tokens and their tags."""
    (item,) = encode_rows([row], model).items
    labels = model.network.head.config.labels  # pyright: ignore
    vocabulary = model.chat.tokenizer.backend
    return [
        (str(vocabulary.id_to_token(item.row[0][place])), labels[index])
        for place, index in zip(item.places, item.tags, strict=True)
    ]


def test_only_the_first_piece_of_a_word_is_supervised(body: Path) -> None:
    found = pieces(tagger(body), ROWS[1])
    assert found == [("the", "O"), ("dog", "O"), ("walk", "O"), ("in", "O"), ("paris", "B-LOC")]


def test_words_and_spans_of_one_text_are_the_same_row(body: Path) -> None:
    model = tagger(body)
    words = {"tokens": ["ann", "lee", "sat", "."], "tags": ["B-PER", "I-PER", "O", "O"]}
    spans = {"text": "ann lee sat .", "spans": [{"start": 0, "end": 7, "label": "PER"}]}
    assert encode_rows([words], model).items == encode_rows([spans], model).items


def test_each_chinese_character_is_a_word_and_words_are_not_parted(body: Path) -> None:
    rows = [{"tokens": ["猫", "坐在", "上海"], "tags": ["O", "O", "B-LOC"]}]
    model = with_head(load_model(body, precision="fp32"), tags_of(rows), source=body)
    assert pieces(model, rows[0]) == [("猫", "O"), ("坐", "O"), ("在", "O"), ("上", "B-LOC"), ("海", "I-LOC")]


def test_signs_inside_a_word_go_on_with_it_as_serving_reads_them(body: Path) -> None:
    row = {"tokens": ["d.e.", "sat"], "tags": ["B-LOC", "O"]}
    model = with_head(load_model(body, precision="fp32"), tags_of([row]), source=body)
    tags = ["B-LOC", "I-LOC", "I-LOC", "I-LOC", "O"]
    assert pieces(model, row) == list(zip(["d", ".", "e", ".", "sat"], tags, strict=True))


def test_the_loss_is_transformers_own(body: Path, tmp_path: Path) -> None:
    model = tagger(body)
    save_model(model, tmp_path / "saved")
    peer = BertForTokenClassification.from_pretrained(tmp_path / "saved")
    items = encode_rows(ROWS, model).items
    longest = max(len(item.row[0]) for item in items)
    ids = torch.tensor([item.row[0] + [0] * (longest - len(item.row[0])) for item in items])
    labels = torch.full_like(ids, -100)
    for row, item in enumerate(items):
        labels[row, list(item.places)] = torch.tensor(item.tags)
    expected = peer(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
    found = torch.nn.functional.cross_entropy(logits_of(model, items), targets_of(items))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_tagger_learns_its_rows_and_finds_the_spans_after_saving(body: Path, tmp_path: Path) -> None:
    model = tagger(body)
    items = encode_rows(ROWS, model).items
    metrics = train(model, items, items, dataclasses.replace(CONFIG, steps=40), job(tmp_path))
    assert metrics["validation"]["f1"] == metrics["validation"]["accuracy"] == 1.0
    assert metrics["validation"]["per_label"]["PER"]["entities"] == 4
    save_model(model, tmp_path / "saved")
    (found,) = tag(load_model(tmp_path / "saved", precision="fp32"), [ROWS[3]["text"]])
    assert [(span.start, span.end, span.label) for span in found] == [(0, 3, "PER"), (8, 11, "PER"), (15, 20, "LOC")]


def test_gradients_do_not_depend_on_micro_batches(body: Path, tmp_path: Path) -> None:
    states: list[dict[str, torch.Tensor]] = []
    for micro_tokens in (None, 8):
        model = tagger(body)
        config = dataclasses.replace(
            CONFIG, steps=1, micro_tokens=micro_tokens, label_smoothing=0.1,
            optim=dataclasses.replace(PLAIN, name="sgd", momentum=0.0, learning_rate=1.0),
        )  # fmt: skip
        train(model, encode_rows(ROWS, model).items, [], config, job(tmp_path / str(micro_tokens)))
        states.append(dict(model.network.state_dict()))
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=2e-6, rtol=0, msg=name)


def test_rows_that_cannot_be_learnt_are_left_out_and_counted(body: Path) -> None:
    model = tagger(body)
    rows = [
        {"text": "ann"},
        {"tokens": [], "tags": []},
        {"tokens": ["ann"], "tags": ["B-ORG"]},
        {"tokens": ["ann"] * 9, "tags": ["B-PER"] * 9},
    ]
    found = encode_rows(rows, model, 6)
    assert found.left_out == {"no_tags": 1, "empty": 1, "unknown_tag": 1}
    assert found.truncated == 1
    assert len(found.items[0].places) == 4


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a"], "tags": []}, r"A row has 1 tokens and 0 tags\. Give one tag for each token"),
        (
            {"text": "ann", "spans": [{"start": 1, "end": 9, "label": "PER"}]},
            r"A span PER is 1 to 9 of a text of 3\. Count characters from 0",
        ),
        (
            {"text": "ann lee", "spans": [{"start": s, "end": s + 3, "label": "PER"} for s in (0, 2)]},
            r"The spans \(0, 3, 'PER'\) and \(2, 5, 'PER'\) overlap\. Keep one",
        ),
    ],
)
def test_rows_that_contradict_themselves_are_refused(body: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode_rows([row], tagger(body))


def test_a_model_and_settings_that_cannot_tag_are_refused(body: Path) -> None:
    with pytest.raises(TrainError, match=r"This model has no tagging head\. Put one on: with_head\(model, tags_of"):
        encode_rows(ROWS, load_model(body, precision="fp32"))
    with pytest.raises(TrainError, match=r"The rows have 0 different tags\. Give rows with tags, or with spans"):
        tags_of([{"text": "a"}])
    with pytest.raises(ConfigError, match=r"rows_per_step is 0\. Use 1 or more"):
        TaggerConfig(rows_per_step=0)
    with pytest.raises(ConfigError, match=r"label_smoothing is -0\.1\. Use 0 or more"):
        TaggerConfig(label_smoothing=-0.1)
