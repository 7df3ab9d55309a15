"""Reward models: they learn what people chose, and transformers gives the same rewards."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertModel

from danlu.core.errors import ConfigError, DataError, TrainError
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.models.rehead import NewScorer, with_head
from danlu.models.save import save_model
from danlu.train.lora import LoraConfig
from danlu.train.merge import merge_lora
from danlu.train.optim import OptimConfig
from danlu.train.stages.reward import RewardModelConfig, both_rewards, encode_rows, train

from ...models.encoders import save_encoder
from ..chats import fresh
from ..losses import trl_peer as trl
from ..opinions import job_in, pairs

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = RewardModelConfig(
    epochs=10,
    rows_per_step=8,
    max_row_tokens=80,
    save_every=3,
    validate_every=4,
    lora=LoraConfig(rank=4),
    optim=OptimConfig(learning_rate=1e-2),
)


def learn(model: Model, folder: Path, config: RewardModelConfig = CONFIG) -> dict[str, Any]:
    rows = encode_rows(pairs(20), model, config.max_row_tokens).items
    return train(model, rows[4:], rows[:4], config, job_in(folder))


def scorer(folder: Path) -> Model:
    return with_head(fresh(folder), NewScorer(), seed=1, source=folder)


@pytest.mark.parametrize("is_adapter", [True, False])
def test_it_learns_which_answer_people_chose(tiny_folder: Path, tmp_path: Path, is_adapter: bool) -> None:
    config = CONFIG if is_adapter else dataclasses.replace(CONFIG, lora=None, optim=OptimConfig(learning_rate=3e-3))
    metrics = learn(scorer(tiny_folder), tmp_path, config)
    assert metrics["validation"]["validation_rewards/accuracy"] == 1.0
    assert metrics["validation"]["validation_loss"] < 0.3
    assert (metrics["trainable_share"] == 1.0) != is_adapter


def test_rewards_and_loss_are_those_of_transformers_and_trl(tiny_folder: Path, tmp_path: Path) -> None:
    model = scorer(tiny_folder)
    learn(model, tmp_path)
    merge_lora(model)
    save_model(model, tmp_path / "saved")
    peer = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    rows = encode_rows(pairs(4), model, 80).items
    with torch.no_grad():
        ours = both_rewards(model, rows)
        theirs = [
            torch.cat([peer(torch.tensor([row[0]])).logits[0] for row in side])
            for side in ([pair.chosen for pair in rows], [pair.rejected for pair in rows])
        ]
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    metrics = json.loads((tmp_path / "curve.jsonl").read_text().splitlines()[-1])
    loss = trl.reward(theirs[0], theirs[1], None, 0.01)
    assert metrics["validation_loss"] == pytest.approx(loss.item(), rel=1e-3, abs=1e-5)


def test_micro_batches_change_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    losses: list[list[float]] = []
    for micro_tokens in (None, 1):
        config = dataclasses.replace(CONFIG, epochs=None, steps=3, micro_tokens=micro_tokens)
        learn(scorer(tiny_folder), tmp_path / str(micro_tokens), config)
        lines = (tmp_path / str(micro_tokens) / "curve.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["grad_norm"] for line in lines if "grad_norm" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_an_encoder_reads_a_pair_of_texts(tmp_path: Path) -> None:
    save_encoder(tmp_path / "bert", BertModel)
    model = with_head(load_model(tmp_path / "bert", precision="fp32"), NewScorer(), seed=1, source=tmp_path / "bert")
    rows = encode_rows([{**row, "margin": 0.5} for row in pairs(12)], model, 40)
    assert rows.items[0].chosen[1].count(1) > 0, "the answer is the second text"
    metrics = train(model, rows.items, rows.items, CONFIG, job_in(tmp_path))
    assert metrics["last_loss"] < metrics["first_loss"]


def test_rows_that_teach_nothing_are_left_out(tiny_folder: Path) -> None:
    model = scorer(tiny_folder)
    rows = [{"prompt": "x", "chosen": "a", "rejected": "a"}, {"prompt": "x", "chosen": "a", "rejected": "b " * 200}]
    found = encode_rows([*rows, *pairs(1)], model, 80)
    assert dict(found.left_out) == {"same": 1, "too_long": 1}
    with pytest.raises(TrainError, match=r"No row can be trained on: 1 same, 1 too_long"):
        encode_rows(rows, model, 80)
    with pytest.raises(DataError, match=r"A row has the margin 'x'\. A margin is a number"):
        encode_rows([{"prompt": "x", "chosen": "a", "rejected": "b", "margin": "x"}], model, 80)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"rows_per_step": 0}, r"rows_per_step is 0\. Use 1"), ({"centring": -1.0}, r"centring is -1\.0\. Use 0 or more")],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RewardModelConfig(**changes)
