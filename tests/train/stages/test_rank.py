"""Recommenders learn what follows what, equal a hand-written loop, and resume."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from danlu.core.errors import ConfigError
from danlu.core.events import Display, Events, Silent
from danlu.models.heads.rank import RankHead
from danlu.models.model import Model
from danlu.train.histories import Histories, HistoryColumns, read_histories, windows
from danlu.train.lora import LoraConfig
from danlu.train.ranking import ranking_scores, ranks
from danlu.train.run import Job
from danlu.train.stages.rank import (
    RecommenderConfig,
    RecommenderOptim,
    item_chances,
    new_recommender,
    summed_loss,
    train,
)

from ..chats import Stop
from ..shoppers import shopping

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = RecommenderConfig(
    width=16,
    max_items=8,
    dropout=0.1,
    epochs=25,
    rows_per_step=20,
    validate_every=10,
    save_every=7,
    optim=RecommenderOptim(learning_rate=1e-2),
)


@pytest.fixture(scope="module")
def found() -> Histories:
    return read_histories(shopping(), HistoryColumns())


def run(found: Histories, folder: Path, config: RecommenderConfig, display: Display | None = None) -> Any:
    model = new_recommender(config, found.items, seed=1)
    events = Events(display=display or Silent())
    job = Job(work=folder / "work", log_path=folder / "curve.jsonl", events=events, seed=1)
    return model, train(model, windows(found.train, config.max_items), found.validation, config, job)


@pytest.mark.parametrize("negatives", [None, 8])
def test_what_comes_next_is_learnt(found: Histories, tmp_path: Path, negatives: int | None) -> None:
    model, metrics = run(found, tmp_path, dataclasses.replace(CONFIG, negatives=negatives))
    assert metrics["last_loss"] < 0.7 * metrics["first_loss"]
    assert metrics["validation_loss"] < 1.5
    assert ranking_scores(ranks(model, found.test)[0], top=1)["hr_at_1"] > 0.9


def test_the_loss_is_the_cross_entropy_of_each_item_after_those_before_it(found: Histories) -> None:
    model = new_recommender(dataclasses.replace(CONFIG, item_bias=True), found.items, seed=0)
    torch.nn.init.normal_(model.network.head.linear.bias, generator=torch.Generator().manual_seed(0))  # pyright: ignore
    rows = found.train[:3]
    expected = sum(_naive(model, row) for row in rows)
    assert float(summed_loss(model, rows)) == pytest.approx(expected, rel=1e-5)


def _naive(model: Model, row: tuple[int, ...]) -> float:
    head = model.network.head
    assert isinstance(head, RankHead)
    total = 0.0
    for place, item in enumerate(row):
        before = [0, *row[:place]]
        scores = head(model.network.rows(torch.tensor(before), [len(before)]), [len(before)])
        total += float(cross_entropy(scores, torch.tensor([item])))
    return total


def test_a_sampled_loss_is_near_the_full_one(found: Histories) -> None:
    model = new_recommender(CONFIG, found.items, seed=0)
    for weight in model.network.parameters():
        torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(weight.numel()))
    chances = item_chances(found.train, model.config.vocabulary_size, 0.5)
    torch.manual_seed(0)
    rows = found.train[:8]
    assert float(summed_loss(model, rows, chances, 20_000)) == pytest.approx(float(summed_loss(model, rows)), rel=0.01)


def test_items_are_drawn_by_a_power_of_their_counts() -> None:
    chances = item_chances([(1, 1, 1, 1), (2,)], 4, 0.5)
    assert chances.tolist() == pytest.approx([0, 2 / 3, 1 / 3, 0])


class Crash(Exception):
    """The process is gone."""


def test_a_run_that_crashed_ends_as_if_it_had_not(found: Histories, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=None, steps=16, negatives=5)
    whole, _ = run(found, tmp_path / "whole", config)
    for stop in (5, 11):
        with pytest.raises(Crash):
            run(found, tmp_path / "cut", config, Stop(stop, Crash()))
    again, _ = run(found, tmp_path / "cut", config)
    ours, theirs = whole.network.state_dict(), again.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": LoraConfig()}, r"lora or parts is given, but a recommender begins from nothing"),
        ({"width": 15}, r"2 heads cannot share a width of 15"),
        ({"negatives": 0}, r"negatives is 0\. Use 1 or more"),
        ({"dropout": 1.0}, r"dropout is 1\.0\. Use 0 to below 1"),
    ],
)
def test_settings_that_cannot_train_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RecommenderConfig(**changes)
