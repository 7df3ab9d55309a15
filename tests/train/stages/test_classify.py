"""Classification against a hand-written loop of torch and transformers, and what users of other libraries look for."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

from danlu.core.errors import ConfigError, DataError, TrainError
from danlu.core.events import Events, Silent
from danlu.models.encode import classify
from danlu.models.images import ImageProcessor
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.models.rehead import NewClassifier, NewScorer, with_head
from danlu.models.save import save_model
from danlu.train.labelled import Labelled, balanced_weights, encode_rows, labels_of
from danlu.train.lora import LoraConfig
from danlu.train.method import PartsConfig
from danlu.train.settings import Job
from danlu.train.stages.classify import ClassifierConfig, logits_of, score, summed_loss, targets_of, train
from danlu.train.texts import TuningOptim
from danlu.train.world import World
from tests.models.encoders import save_encoder
from tests.tiny import write_tiny

ROWS = [
    {"text": "the cat sat on the mat", "label": "cat"},
    {"text": "a dog", "label": "dog"},
    {"text": "ann lee met a dog in paris", "label": "dog"},
    {"text": "猫坐在垫子上", "label": "cat"},
    {"text": "the dog sat", "label": "dog"},
    {"text": "ann met lee", "label": "people"},
    {"text": "cats sat on a mat , a b c", "label": "cat"},
    {"text": "lee walked", "label": "people"},
]
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
PLAIN = TuningOptim(learning_rate=1e-3, weight_decay=0.0, warmup_steps=0, schedule="constant", clip_norm=None)
CONFIG = ClassifierConfig(steps=10, rows_per_step=4, optim=PLAIN, precision="fp32", audit="off")


def job(folder: Path, display: Silent | None = None) -> Job:
    return Job(work=folder / "work", log_path=folder / "log.jsonl", events=Events(display=display or Silent()), seed=3)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel, PreTrainedTokenizerFast]:
    folder = tmp_path_factory.mktemp("bert")
    labels = {"id2label": {0: "cat", 1: "dog", 2: "people"}, "label2id": {"cat": 0, "dog": 1, "people": 2}}
    return folder, *save_encoder(folder, BertForSequenceClassification, **STILL, **labels)


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pre-trained, without a classifier."""
    folder = tmp_path_factory.mktemp("body")
    save_encoder(folder, BertForMaskedLM, **STILL)
    return folder


def fresh(path: Path) -> Model:
    return load_model(path, precision="fp32")


def curve(path: Path) -> list[float]:
    import json

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_ten_steps_are_those_of_a_hand_written_loop(
    bert: tuple[Path, PreTrainedModel, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    folder, _, tokenizer = bert
    peer = BertForSequenceClassification.from_pretrained(folder).train()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0)
    model = fresh(folder)
    items = encode_rows(ROWS, model).items
    names = ["cat", "dog", "people"]
    by_ids = {tuple(item.row[0]): row for item, row in zip(items, ROWS, strict=True) if isinstance(item.row, tuple)}
    train(model, items, [], CONFIG, job(tmp_path))

    from danlu.train.batches import RowBatches

    batches = RowBatches(items, lambda item: item.num_tokens, seed=3, rows_per_step=4)
    losses: list[float] = []
    for step in range(10):
        (batch,) = batches.at(step)
        rows = [by_ids[tuple(item.row[0])] for item in batch if isinstance(item.row, tuple)]
        inputs = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        loss = peer(**inputs, labels=torch.tensor([names.index(row["label"]) for row in rows])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert curve(tmp_path / "log.jsonl") == pytest.approx(losses, abs=1e-5)
    expected = peer.eval()(**tokenizer("the dog met a cat", return_tensors="pt")).logits[0].softmax(-1)
    found = {one.label: one.probability for one in classify(model, ["the dog met a cat"])[0]}
    assert [found[name] for name in names] == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_body_gets_a_head_learns_the_labels_and_is_the_same_after_saving(body: Path, tmp_path: Path) -> None:
    model = with_head(fresh(body), labels_of(ROWS), source=body)
    config = dataclasses.replace(CONFIG, steps=40, optim=dataclasses.replace(PLAIN, learning_rate=3e-3))
    items = encode_rows(ROWS, model).items
    metrics = train(model, items, items, config, job(tmp_path))
    assert metrics["labels"] == ["cat", "dog", "people"]
    assert metrics["validation"]["accuracy"] == 1.0
    assert metrics["validation"]["macro_f1"] == 1.0
    assert metrics["validation"]["per_label"]["dog"]["rows"] == 3
    assert metrics["validation_loss"] == pytest.approx(metrics["validation"]["loss"], abs=1e-5)
    save_model(model, tmp_path / "saved")
    texts = [row["text"] for row in ROWS]
    before = classify(model, texts)
    assert [found[0].label for found in before] == [row["label"] for row in ROWS]
    after = classify(fresh(tmp_path / "saved"), texts)
    assert [[one.label for one in found] for found in after] == [[one.label for one in found] for found in before]
    theirs = BertForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert theirs.config.id2label == {0: "cat", 1: "dog", 2: "people"}


@pytest.mark.parametrize("weights", ["equal", "balanced"])
def test_gradients_do_not_depend_on_micro_batches(
    bert: tuple[Path, PreTrainedModel, PreTrainedTokenizerFast], tmp_path: Path, weights: Any
) -> None:
    states: list[dict[str, torch.Tensor]] = []
    for micro_tokens in (None, 12):
        model = fresh(bert[0])
        config = dataclasses.replace(
            CONFIG, steps=1, rows_per_step=8, micro_tokens=micro_tokens, class_weights=weights, label_smoothing=0.1,
            optim=dataclasses.replace(PLAIN, name="sgd", momentum=0.0, learning_rate=1.0),
        )  # fmt: skip
        train(model, encode_rows(ROWS, model).items, [], config, job(tmp_path / str(micro_tokens)))
        states.append(dict(model.network.state_dict()))
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=2e-6, rtol=0, msg=name)


def test_dropout_is_on_in_training_and_off_in_validation(body: Path, tmp_path: Path) -> None:
    folder = tmp_path / "noisy"
    save_encoder(folder, BertForSequenceClassification, hidden_dropout_prob=0.5, num_labels=3)
    model = fresh(folder)
    items = encode_rows([{**row, "label": i % 3} for i, row in enumerate(ROWS)], model).items
    config = dataclasses.replace(
        CONFIG, steps=2, validate_every=1, optim=dataclasses.replace(PLAIN, learning_rate=1e-9)
    )
    metrics = train(model, items, items, config, job(tmp_path))
    assert abs(metrics["first_loss"] - metrics["validation_loss"]) > 1e-3
    assert score(model, items)["loss"] == pytest.approx(metrics["validation_loss"], abs=1e-5)


def test_class_weights_and_smoothing_are_torchs_own() -> None:
    logits, targets = torch.randn(6, 3), torch.eye(3)[[0, 1, 2, 0, 0, 1]]
    weights = torch.tensor([0.5, 1.0, 2.0])
    total, count = summed_loss(logits, targets, multi_label=False, weights=weights, smoothing=0.1)
    expected = torch.nn.CrossEntropyLoss(weight=weights, label_smoothing=0.1)(logits, targets.argmax(-1))
    torch.testing.assert_close(total / count, expected)
    total, count = summed_loss(logits, targets, multi_label=True)
    torch.testing.assert_close(total / count, torch.nn.BCEWithLogitsLoss()(logits, targets))


def test_balanced_weights_are_known_numbers() -> None:
    items = [Labelled(([1], [0]), target) for target in ((1.0, 0.0), (1.0, 0.0), (1.0, 0.0), (0.0, 1.0))]
    assert balanced_weights(items, multi_label=False).tolist() == pytest.approx([4 / 6, 2.0])
    assert balanced_weights(items, multi_label=True).tolist() == pytest.approx([1 / 3, 3.0])


def test_a_decision_for_macro_f1_ends_in_the_bias_and_nothing_else_changes(body: Path, tmp_path: Path) -> None:
    rows = [*ROWS, *({"text": f"the cat {word}", "label": "cat"} for word in ("sat", "met a dog", "in paris", "a b"))]
    heads: list[Any] = []
    metrics: list[dict[str, Any]] = []
    for name, decision in (("plain", "likeliest"), ("moved", "macro_f1")):
        model = with_head(fresh(body), labels_of(ROWS), source=body)
        items = encode_rows(rows, model).items
        config = dataclasses.replace(CONFIG, steps=3, decision=decision)
        metrics.append(train(model, items, items, config, job(tmp_path / name)))
        heads.append(model.network.head)
    lean, shares = metrics[1]["lean"], torch.tensor([7 / 12, 3 / 12, 2 / 12])
    assert lean != 0.0
    torch.testing.assert_close(heads[1].linear.weight, heads[0].linear.weight)
    torch.testing.assert_close(heads[1].linear.bias, heads[0].linear.bias - lean * shares.log())
    assert metrics[1]["validation"]["macro_f1"] >= metrics[0]["validation"]["macro_f1"]
    assert metrics[1]["last_loss"] == metrics[0]["last_loss"]
    assert "lean" not in metrics[0]


def test_a_decision_for_macro_f1_needs_validation_rows_and_one_label_a_row(body: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, decision="macro_f1")
    model = with_head(fresh(body), labels_of(ROWS), source=body)
    items = encode_rows(ROWS, model).items
    with pytest.raises(TrainError, match=r"decision is macro_f1, but there are no validation rows\. Give some, or"):
        train(model, items, [], config, job(tmp_path))
    still = dataclasses.replace(config, parts=PartsConfig(train=("stack.blocks.1",)))
    with pytest.raises(TrainError, match=r"decision is macro_f1, but the head does not train\. Name it in parts, or"):
        train(model, items, items, still, job(tmp_path))
    several = with_head(fresh(body), NewClassifier(labels=("cat", "dog"), multi_label=True), source=body)
    items = encode_rows([{"text": "cat met dog", "label": ["cat", "dog"]}], several).items
    with pytest.raises(TrainError, match=r"decision is macro_f1, but several labels may hold at once\. Leave decision"):
        train(several, items, items, config, job(tmp_path))


def test_several_labels_may_hold(body: Path, tmp_path: Path) -> None:
    rows = [{"text": "a cat", "label": ["cat"]}, {"text": "dog", "label": ["dog"]}, {"text": "b c", "label": []}]
    rows.append({"text": "cat met dog", "label": ["cat", "dog"]})
    model = with_head(fresh(body), labels_of(rows), source=body)
    items = encode_rows(rows, model).items
    config = dataclasses.replace(CONFIG, steps=60, optim=dataclasses.replace(PLAIN, learning_rate=3e-3))
    metrics = train(model, items, items, config, job(tmp_path))
    assert metrics["validation"]["accuracy"] == metrics["validation"]["micro_f1"] == 1.0
    found = {one.label: one.probability for one in classify(model, ["cat met dog"])[0]}
    assert min(found.values()) > 0.5


def test_pairs_with_scores_make_a_cross_encoder(body: Path, tmp_path: Path) -> None:
    rows = [
        {"text": "a cat", "text_pair": "the cat", "score": 1.0},
        {"text": "a cat", "text_pair": "paris", "score": 0.0},
        {"text": "dog", "text_pair": "dogs", "score": 0.8},
        {"text": "dog", "text_pair": "mat", "score": 0.2},
    ]
    wanted = labels_of(rows)
    assert isinstance(wanted, NewScorer)
    model = with_head(fresh(body), wanted, source=body)
    items = encode_rows(rows, model).items
    assert isinstance(items[0].row, tuple)
    assert set(items[0].row[1]) == {0, 1}
    config = dataclasses.replace(CONFIG, steps=60, optim=dataclasses.replace(PLAIN, learning_rate=3e-3))
    assert train(model, items, items, config, job(tmp_path))["validation"]["spearman"] == pytest.approx(1.0)


def test_a_causal_body_is_read_at_its_last_token_with_an_adapter(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "llama")
    model = with_head(fresh(folder), labels_of(ROWS), source=folder)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    items = encode_rows(ROWS, model).items
    config = dataclasses.replace(
        CONFIG, steps=60, lora=LoraConfig(rank=4), optim=dataclasses.replace(PLAIN, learning_rate=2e-2)
    )
    metrics = train(model, items, items, config, job(tmp_path))
    assert metrics["validation"]["accuracy"] > 0.7
    assert metrics["trainable_share"] < 0.2
    changed = [n for n, t in model.network.state_dict().items() if n in before and not torch.equal(before[n], t)]
    assert changed == ["head.linear.weight"]


def test_adapters_in_bf16_end_in_one_number_type(tmp_path: Path) -> None:
    from danlu.flow.tuning import save_tuned

    folder = write_tiny(tmp_path / "llama")
    model = with_head(load_model(folder, precision="bf16"), labels_of(ROWS), source=folder)
    items = encode_rows(ROWS, model).items
    config = dataclasses.replace(CONFIG, steps=2, lora=LoraConfig(rank=4), precision="bf16")
    metrics = train(model, items, items, config, job(tmp_path))
    assert math.isfinite(metrics["validation"]["loss"])
    changes = save_tuned(model, config, tmp_path / "saved", World())
    assert changes["merged_change"] > 0
    again = load_model(tmp_path / "saved", precision="bf16")
    torch.testing.assert_close(logits_of(again, items), logits_of(model, items))


def test_a_new_head_is_fp32_like_its_body_though_both_compute_in_bf16(body: Path, tmp_path: Path) -> None:
    model = fresh(body)
    model.activation_dtype = torch.bfloat16
    model = with_head(model, labels_of(ROWS), source=body)
    assert {weight.dtype for weight in model.network.parameters()} == {torch.float32}
    items = encode_rows(ROWS, model).items
    before = {name: weight.clone() for name, weight in model.network.state_dict().items()}
    metrics = train(model, items, items, dataclasses.replace(CONFIG, steps=2), job(tmp_path))
    assert math.isfinite(metrics["validation"]["loss"])
    after = model.network.state_dict()
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    assert all(not torch.equal(before[name], after[name]) for name in before if name.startswith("head."))


def test_images_are_labelled_too(tmp_path: Path) -> None:
    labels = {"id2label": {0: "dark", 1: "light"}, "label2id": {"dark": 0, "light": 1}}
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, **labels)).save_pretrained(tmp_path)
    rows: list[dict[str, Any]] = []
    for number, grey in enumerate((20, 230, 60, 200)):
        Image.new("RGB", (8, 8), (grey,) * 3).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "label": "light" if grey > 128 else "dark"})
    images = ImageProcessor.of_folder(_with_processor(tmp_path))
    model = fresh(tmp_path)
    items = encode_rows(rows, model, folder=tmp_path).items
    config = dataclasses.replace(CONFIG, steps=20, optim=dataclasses.replace(PLAIN, learning_rate=1e-2))
    assert train(model, items, items, config, job(tmp_path / "job"), images=images)["validation"]["accuracy"] == 1.0
    with pytest.raises(TrainError, match=r"The rows are images, but nothing says how images are prepared\."):
        logits_of(model, items)


def _with_processor(folder: Path) -> Path:
    import json

    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_rows_that_cannot_be_learnt_are_left_out_and_counted(
    bert: tuple[Path, PreTrainedModel, PreTrainedTokenizerFast],
) -> None:
    model = fresh(bert[0])
    rows: list[dict[str, Any]] = [
        {"text": " ", "label": "cat"},
        {"text": "a"},
        {"text": "a", "label": "bird"},
        {"text": "a", "label": ["cat", "dog"]},
        {"text": "the cat " * 20, "label": "cat"},
        {"text": "dog", "label": 1},
    ]
    found = encode_rows(rows, model, 8)
    assert found.left_out == {"empty": 1, "no_label": 1, "unknown_label": 1, "several_labels": 1}
    assert found.truncated == 1
    assert [item.num_tokens for item in found.items] == [8, 3]
    assert targets_of(found.items).tolist() == [[1, 0, 0], [0, 1, 0]]
    with pytest.raises(TrainError, match=r"No row can be trained on: 1 empty, 1 no_label\. A row needs text"):
        encode_rows(rows[:2], model)


def test_labels_are_found_in_rows_numbers_by_size() -> None:
    found = labels_of([{"label": 10}, {"label": 2}, {"label": 0}])
    assert isinstance(found, NewClassifier)
    assert found.labels == ("0", "2", "10")
    given = labels_of([{"label": "b"}], ("b", "a"))
    assert isinstance(given, NewClassifier)
    assert given.labels == ("b", "a")
    with pytest.raises(TrainError, match=r"The rows have 1 different labels\. Give rows of at least two, as label"):
        labels_of([{"label": "b"}, {"label": "b"}])


def test_scores_and_heads_that_make_no_sense_are_refused(body: Path) -> None:
    model = with_head(fresh(body), NewScorer())
    with pytest.raises(DataError, match=r"A row has the score 3\. Scores are numbers from 0 to 1"):
        encode_rows([{"text": "a", "score": 3}], model)
    with pytest.raises(TrainError, match=r"This model has no classification head\. Put one on: with_head"):
        encode_rows(ROWS, fresh(body))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows_per_step": 0}, r"rows_per_step is 0\. Use 1 or more"),
        ({"max_row_tokens": 0}, r"max_row_tokens is 0\. Use 1 or more"),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1\.0\. Use 0 or more, and less than 1"),
    ],
)
def test_settings_that_cannot_train_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClassifierConfig(**changes)
