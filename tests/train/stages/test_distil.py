"""Distillation equals a hand-written loop, kept answers equal asked ones, and students become like their teachers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from danlu.core.errors import ConfigError
from danlu.core.events import Display, Events, Silent
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.models.save import save_model
from danlu.train.answers import encode_rows
from danlu.train.lora import LoraConfig
from danlu.train.losses.distil import DistilConfig
from danlu.train.optim import OptimConfig
from danlu.train.run import Job
from danlu.train.stages.distil import DistillationConfig, ask, train
from danlu.train.student import shorter

from ...models.peer import our_logits, save_llama, some_ids
from ..chats import Stop, chats

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = DistillationConfig(
    steps=12,
    tokens_per_step=160,
    max_row_tokens=80,
    validate_every=6,
    samples=0,
    save_every=5,
    optim=OptimConfig(learning_rate=3e-3, clip_norm=None, schedule="constant", warmup_share=0.0),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of four blocks."""
    path = tmp_path_factory.mktemp("teacher") / "m"
    save_llama(path, num_hidden_layers=4, initializer_range=0.15)
    return path


def run(
    folder: Path, work: Path, config: DistillationConfig = CONFIG, *, student: Model | None = None,
    display: Display | None = None,
) -> tuple[Model, dict[str, Any]]:  # fmt: skip
    teacher = load_model(folder, precision="fp32")
    student = student or shorter(load_model(folder, precision="fp32"), 2)
    rows = encode_rows(chats(28), student.chat, config.max_row_tokens).items
    events = Events(display=display or Silent())
    job = Job(work=work / "work", log_path=work / "curve.jsonl", events=events, seed=3)
    asked = ask(teacher, student, rows, config, job)
    return student, train(student, rows[:24], rows[24:], config, job, teacher=asked)


def curve(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / "curve.jsonl").read_text().splitlines()]


def losses(work: Path) -> list[float]:
    return [line["loss"] for line in curve(work) if "loss" in line]


LOSSES = {
    "forward": DistilConfig(),
    "reverse": DistilConfig(beta=1.0),
    "jsd, hot, mixed": DistilConfig(beta=0.3, temperature=2.0, hard_share=0.4),
}


def by_hand(mine: torch.Tensor, theirs: torch.Tensor, target: torch.Tensor, config: DistilConfig) -> torch.Tensor:
    """The loss of whole logits, with torch's own divergence."""
    own, other = (log_softmax(logits / config.temperature, dim=-1) for logits in (mine, theirs))

    def kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return kl_div(second, first, log_target=True, reduction="sum")

    beta = config.beta
    if beta in (0.0, 1.0):
        soft = kl(other, own) if beta == 0.0 else kl(own, other)
    else:
        middle = torch.log(beta * other.exp() + (1 - beta) * own.exp())
        soft = beta * kl(other, middle) + (1 - beta) * kl(own, middle)
    hard = cross_entropy(mine, target, reduction="sum")
    return (1 - config.hard_share) * soft * config.temperature**2 + config.hard_share * hard


@pytest.mark.parametrize("name", LOSSES)
def test_training_is_a_plain_loop_over_whole_logits(folder: Path, tmp_path: Path, name: str) -> None:
    config = dataclasses.replace(CONFIG, steps=4, loss=LOSSES[name], tokens_per_step=4000)
    student, _ = run(folder, tmp_path, config)
    teacher, peer = (load_model(folder, precision="fp32") for _ in range(2))
    peer = shorter(peer, 2)
    network = peer.network.requires_grad_(True)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3, betas=(0.9, 0.99), eps=1e-8)
    rows = encode_rows(chats(28), peer.chat, 80).items[:24]  # all in one step
    found: list[float] = []
    for _ in range(4):
        total, count = torch.zeros(()), 0
        for row in rows:
            places = torch.tensor([i for i, learnt in enumerate(row.is_answer) if learnt and i > 0])
            ids = torch.tensor(row.ids)
            mine = network.logits(network.rows(ids, [len(ids)]))[places - 1]
            total = total + by_hand(mine, our_logits(teacher, row.ids)[places - 1].clone(), ids[places], LOSSES[name])
            count += len(places)
        optimiser.zero_grad()
        (total / count).backward()
        optimiser.step()
        found.append(float(total.detach()) / count)
    assert losses(tmp_path) == pytest.approx(found, rel=1e-4)
    with torch.no_grad():
        ids = some_ids(12)
        torch.testing.assert_close(our_logits(student, ids), our_logits(peer, ids), rtol=2e-3, atol=2e-3)


def test_all_tokens_kept_on_disk_train_as_asking_does(folder: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, loss=LOSSES["jsd, hot, mixed"])
    run(folder, tmp_path / "asked", config)
    run(folder, tmp_path / "kept", dataclasses.replace(config, kept_answers=100_000))
    asked, kept = curve(tmp_path / "asked"), curve(tmp_path / "kept")
    for one, other in zip(asked, kept, strict=True):
        assert one.keys() == other.keys()
        assert all(other[key] == pytest.approx(value, rel=1e-3, abs=1e-5) for key, value in one.items()), one


def test_a_few_tokens_kept_see_less_of_the_distance_and_train_too(folder: Path, tmp_path: Path) -> None:
    _, asked = run(folder, tmp_path / "asked")
    _, kept = run(folder, tmp_path / "kept", dataclasses.replace(CONFIG, kept_answers=32))
    assert 0.3 * asked["first_loss"] < kept["first_loss"] < asked["first_loss"]
    assert kept["last_loss"] < 0.8 * kept["first_loss"]
    assert kept["validation"]["next_token_loss"] == pytest.approx(asked["validation"]["next_token_loss"], rel=0.1)


@pytest.mark.parametrize("is_cosine", [False, True])
def test_a_student_becomes_like_its_teacher(folder: Path, tmp_path: Path, is_cosine: bool) -> None:
    config = dataclasses.replace(CONFIG, steps=40, validate_every=40, hidden_weight=0.5, hidden_cosine=is_cosine)
    _, metrics = run(folder, tmp_path, config)
    lines = [line for line in curve(tmp_path) if "loss" in line]
    assert metrics["validation"]["agreement"] > 0.25
    assert lines[-1]["divergence"] < 0.4 * lines[0]["divergence"]
    assert lines[-1]["hidden_distance"] < 0.8 * lines[0]["hidden_distance"]
    assert metrics["validation"]["kl"] == pytest.approx(metrics["validation"]["loss"], rel=1e-6)


def test_a_narrower_student_of_its_own_learns_and_is_saved_without_projections(folder: Path, tmp_path: Path) -> None:
    save_llama(tmp_path / "small", seed=5, hidden_size=16, num_hidden_layers=1, initializer_range=0.1)
    student = load_model(tmp_path / "small", precision="fp32")
    student.activation_dtype = torch.bfloat16
    config = dataclasses.replace(CONFIG, hidden_weight=1.0)
    student, metrics = run(folder, tmp_path, config, student=student)
    assert metrics["last_loss"] < metrics["first_loss"]
    save_model(student, tmp_path / "saved")
    again = load_model(tmp_path / "saved", precision="fp32")
    ids = some_ids(12)
    torch.testing.assert_close(our_logits(again, ids), our_logits(student, ids), rtol=0, atol=0)


def test_an_adapter_can_learn_too(folder: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, lora=LoraConfig(rank=4))
    _, metrics = run(folder, tmp_path, config)
    assert metrics["trainable_share"] < 0.5
    assert metrics["last_loss"] < metrics["first_loss"]


class Crash(Exception):
    """The process is gone."""


def test_a_run_that_crashed_ends_as_if_it_had_not(folder: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, kept_answers=16)
    run(folder, tmp_path / "whole", config)
    for stop in (3, 8):
        with pytest.raises(Crash):
            run(folder, tmp_path / "cut", config, display=Stop(stop, Crash()))
    run(folder, tmp_path / "cut", config)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


def test_how_a_batch_is_split_changes_nothing(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "whole", dataclasses.replace(CONFIG, hidden_weight=0.5))
    run(folder, tmp_path / "parts", dataclasses.replace(CONFIG, hidden_weight=0.5, micro_tokens=60))
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kept_answers": 0}, r"kept_answers is 0\. Use 1 or more"),
        ({"hidden_weight": -1.0}, r"hidden_weight is -1\.0"),
        ({"hidden_weight": 1.0, "kept_answers": 8}, r"hidden_weight and kept_answers are both given, but kept answers"),
        ({"tokens_per_step": 100, "max_row_tokens": 200}, r"max_row_tokens 200 is more than tokens_per_step 100"),
    ],
)
def test_settings_that_cannot_train_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DistillationConfig(**changes)
