import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from danlu.core.errors import ConfigError, ResourceError
from danlu.core.events import Events, Silent
from danlu.train.batches import RowBatches
from danlu.train.optim import OptimConfig
from danlu.train.run import Job, RunConfig, Summed, TrainingRun
from danlu.train.weights import trainable
from danlu.train.world import World

CONFIG = RunConfig(steps=12, save_every=4, validate_every=3, optim=OptimConfig(learning_rate=0.05))
Pair = tuple[Tensor, Tensor]


class Toy:
    """What a run needs of a model."""

    def __init__(self, dropout: float = 0.0) -> None:
        torch.manual_seed(1)
        self.network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(dropout), nn.Tanh(), nn.Linear(8, 1))
        self.activation_dtype = torch.float32
        self.device = torch.device("cpu")


class Said(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def pairs(count: int = 30) -> list[Pair]:
    torch.manual_seed(2)
    x = torch.randn(count, 4)
    return [(row, row.sum().view(1)) for row in x]


def job(folder: Path, display: Silent | None = None) -> Job:
    return Job(
        work=folder / "work", log_path=folder / "curve.jsonl", events=Events(display=display or Silent()), seed=7
    )


def train(
    toy: Any,
    folder: Path,
    config: RunConfig = CONFIG,
    *,
    micro_tokens: int | None = None,
    validation: Sequence[float] = (),
    before: Any = None,
    display: Silent | None = None,
) -> dict[str, Any]:
    """Least squares on pairs; ``before`` is called with each micro-batch, ``validation`` are made-up losses."""
    batches = RowBatches(pairs(), lambda _: 1, seed=7, rows_per_step=10, micro_tokens=micro_tokens)
    waiting = list(validation)

    def loss_of(items: Sequence[Pair]) -> Summed:
        if before is not None:
            before(items)
        x, y = (torch.stack(column) for column in zip(*items, strict=True))
        total = nn.functional.mse_loss(toy.network(x), y, reduction="sum")
        return Summed(total, len(items), len(items), {"error": total.detach()})

    with TrainingRun(toy, trainable(toy.network), config, batches, job(folder, display)) as run:
        for step in run.steps():
            step.accumulate(loss_of)
            step.update()
            if waiting and step.validates:
                step.report({"validation_loss": waiting.pop(0)})
    return run.metrics()


def weights_of(toy: Any) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in toy.network.parameters()])


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def test_the_steps_equal_a_plain_loop(tmp_path: Path) -> None:
    toy, plain = Toy(), Toy()
    train(toy, tmp_path)
    batches = RowBatches(pairs(), lambda _: 1, seed=7, rows_per_step=10)
    from danlu.train.optim import rate_at

    adam = torch.optim.AdamW(plain.network.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(12):
        adam.param_groups[0]["lr"] = rate_at(step, 12, CONFIG.optim)
        (items,) = batches.at(step)
        x, y = (torch.stack(column) for column in zip(*items, strict=True))
        nn.functional.mse_loss(plain.network(x), y).backward()
        nn.utils.clip_grad_norm_(plain.network.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
    torch.testing.assert_close(weights_of(toy), weights_of(plain), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("micro_tokens", [1, 3, 5])
def test_micro_batches_change_nothing_but_memory(tmp_path: Path, micro_tokens: int) -> None:
    whole, split = Toy(), Toy()
    train(whole, tmp_path / "whole")
    train(split, tmp_path / "split", micro_tokens=micro_tokens)
    torch.testing.assert_close(weights_of(split), weights_of(whole), atol=1e-6, rtol=1e-5)
    for one, other in zip(lines(tmp_path / "whole"), lines(tmp_path / "split"), strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-5)


def test_killed_and_resumed_twice_with_dropout_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = Toy(dropout=0.3)
    train(whole, tmp_path / "whole")
    for kill_at in (6, 9):
        calls = iter(range(100))

        def before(_: object, calls: Any = calls, kill_at: int = kill_at) -> None:
            if next(calls) == kill_at - (0 if kill_at == 6 else 4):
                raise OSError("gone")

        with pytest.raises(OSError, match="gone"):
            train(Toy(dropout=0.3), tmp_path / "cut", before=before)
    last = Toy(dropout=0.3)
    train(last, tmp_path / "cut")
    assert torch.equal(weights_of(last), weights_of(whole))
    assert (tmp_path / "cut" / "curve.jsonl").read_text() == (tmp_path / "whole" / "curve.jsonl").read_text()


def test_out_of_memory_halves_micro_batches_and_says_so(tmp_path: Path) -> None:
    display = Said()

    def before(items: Sequence[Pair]) -> None:
        if len(items) > 3:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    cramped, roomy = Toy(), Toy()
    train(cramped, tmp_path / "cramped", before=before, display=display)
    train(roomy, tmp_path / "roomy")
    torch.testing.assert_close(weights_of(cramped), weights_of(roomy), atol=1e-6, rtol=1e-5)
    said = "Out of memory in step 1: micro-batches are halved, the batch stays the same."
    assert display.said == [said, said]


def test_a_single_row_too_large_is_a_clear_error_and_other_errors_pass(tmp_path: Path) -> None:
    def full(_: object) -> None:
        raise MemoryError

    with pytest.raises(ResourceError, match="A single row needs more memory than there is"):
        train(Toy(), tmp_path / "full", before=full)

    def wrong(_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(Toy(), tmp_path / "wrong", before=wrong)


def test_training_stops_when_validation_gets_no_better_and_ends_with_the_best(tmp_path: Path) -> None:
    display = Said()
    config = dataclasses.replace(CONFIG, steps=30, patience=2, keep="best")
    toy = Toy()
    metrics = train(toy, tmp_path, config, validation=[1.0, 0.5, 0.7, 0.6, 0.1], display=display)
    assert metrics["steps"] == 12
    assert metrics["stopped_early"]
    assert (metrics["best_step"], metrics["best_validation_loss"]) == (6, 0.5)
    assert display.said == ["Stopped after step 12: no better validation loss than 0.5000 of step 6 in 2 validations."]
    until_best = Toy()
    with pytest.raises(OSError, match="stop"):
        calls = iter(range(100))

        def before(_: object) -> None:
            if next(calls) == 6:
                raise OSError("stop")

        train(until_best, tmp_path / "other", config, before=before)
    assert torch.equal(weights_of(toy), weights_of(until_best))


def test_epochs_set_the_number_of_steps(tmp_path: Path) -> None:
    assert train(Toy(), tmp_path, dataclasses.replace(CONFIG, epochs=2.0))["steps"] == 6


def test_more_sums_become_means_in_the_curve(tmp_path: Path) -> None:
    train(Toy(), tmp_path)
    assert all(line["error"] == pytest.approx(line["loss"], abs=1e-5) for line in lines(tmp_path))


def test_a_jump_of_the_loss_is_counted(tmp_path: Path) -> None:
    toy = Toy()
    calls = iter(range(1000))

    def before(_: object) -> None:
        if next(calls) == 45:
            with torch.no_grad():
                toy.network[3].bias += 1000.0

    config = dataclasses.replace(CONFIG, steps=46, validate_every=100)
    assert train(toy, tmp_path, config, before=before)["loss_spikes"] >= 1


def test_two_processes_divide_by_what_both_have_seen(tmp_path: Path) -> None:
    """A team of this process and one that always reports three rows with a loss of 30 and no gradient."""

    class Two(World):
        def sum(self, values: Sequence[float]) -> list[float]:
            return [values[0], values[1] + 30.0, values[2] + 3.0, values[3] + 3.0, *values[4:]]

    toy, alone = Toy(), Toy()
    items = pairs()[:5]
    x, y = (torch.stack(column) for column in zip(*items, strict=True))
    loss = nn.functional.mse_loss(alone.network(x), y, reduction="sum")
    batches = RowBatches(items, lambda _: 1, seed=7, rows_per_step=5)
    with_team = dataclasses.replace(job(tmp_path), world=Two())
    config = dataclasses.replace(CONFIG, steps=1)

    def loss_of(found: Sequence[Pair]) -> Summed:
        x, y = (torch.stack(column) for column in zip(*found, strict=True))
        return Summed(nn.functional.mse_loss(toy.network(x), y, reduction="sum"), len(found), len(found))

    with TrainingRun(toy, trainable(toy.network), config, batches, with_team) as run:  # pyright: ignore[reportArgumentType]
        for step in run.steps():
            step.accumulate(loss_of)
            step.update()
    assert lines(tmp_path)[0]["loss"] == pytest.approx((float(loss.detach()) + 30.0) / 8.0, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_tokens": 0}, r"micro_tokens is 0\. Use 1 or more"),
        ({"epochs": 0.0}, r"epochs is 0\.0\. Use a positive number"),
        ({"patience": -1}, r"patience is -1\. Use 0 or more"),
    ],
)
def test_settings_that_cannot_train_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig(**changes)
