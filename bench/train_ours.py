"""One job of ours: LoRA on conversations, or pre-training on token rows.

    python bench/train_ours.py SETTINGS.json

Called by bench/train.py. One function a track; each loads, trains with the library's own run around the loop, and
leaves weights that the judge (bench/train_score.py) can read. Batches are those of every other system: the given rows
in the given order.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from train_clock import Job as Clock
from train_clock import read_job, row_order

from danlu.core.device import compute_dtype, pick_device
from danlu.core.events import Events
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.models.save import save_model
from danlu.text.chat import RenderedChat
from danlu.train.adapter import save_adapter
from danlu.train.lora import LoraConfig, add_lora
from danlu.train.loss import collate, summed_loss
from danlu.train.optim import OptimConfig
from danlu.train.remat import checkpoint_blocks
from danlu.train.run import TrainingRun
from danlu.train.settings import Job, RunConfig
from danlu.train.step import Summed
from danlu.train.watch import Watch, watching
from danlu.train.weights import trainable

Rows = Sequence[RenderedChat]


def main() -> int:
    clock = read_job()
    {"lora": lora, "pretrain": pretrain}[clock["track"]](clock)
    return 0


def lora(clock: Clock) -> None:
    """An adapter on a frozen base, loss on the answers."""
    model = load_model(Path(clock["model"]), precision=clock.get("precision"))
    config = LoraConfig(rank=clock["rank"], alpha=clock["alpha"])
    add_lora(model, config)
    checkpoint_blocks(model.network, clock.get("remat", "none"))
    kept = json.loads(Path(clock["rows"]).read_text(encoding="utf-8"))["train"]
    rows = [RenderedChat(row["ids"], row["is_answer"]) for row in kept]
    tokens = sum(len(row.ids) for row in rows) * clock["rows_per_step"] // len(rows)
    losses = train(clock, model, InOrder(rows.__getitem__, len(rows), clock["rows_per_step"], tokens))
    save_adapter(model, clock.out / "saved", config, base=clock["model"])
    finish(clock, model, losses)


def pretrain(clock: Clock) -> None:
    """Every weight, loss on every token but the first of a row."""
    model = load_model(Path(clock["model"]), precision="fp32")
    if clock.get("precision") != "fp32":
        model.activation_dtype = compute_dtype(pick_device())
    model.network.requires_grad_(True)
    checkpoint_blocks(model.network, clock.get("remat", "none"))
    ids = np.fromfile(clock["tokens"], dtype=np.uint16)
    size, order = clock["row_tokens"], row_order(clock)

    def row(number: int) -> RenderedChat:
        start = order[number] * size
        return RenderedChat(ids[start : start + size].tolist(), [True] * size)

    tokens = clock["rows_per_step"] * size
    losses = train(clock, model, InOrder(row, len(order), clock["rows_per_step"], tokens))
    save_model(model, clock.out / "saved")
    for snapshot in clock.snapshots:
        restored = load_model(Path(clock["model"]), precision="fp32")
        restored.network.load_state_dict(load_file(Path(snapshot["folder"]) / "masters.safetensors"), strict=False)
        save_model(restored, Path(snapshot["folder"]))
    finish(clock, model, losses)


class InOrder:
    """The rows of each step, in the order they come, again from the start when they are over."""

    def __init__(
        self, row: Callable[[int], RenderedChat], num_rows: int, rows_per_step: int, tokens_per_step: int
    ) -> None:  # fmt: skip
        self._row, self._count = row, rows_per_step
        self.per_epoch = num_rows // rows_per_step
        self.tokens_per_step = tokens_per_step

    def at(self, step: int, rank: int = 0, world_size: int = 1) -> list[Rows]:
        """All rows of the step as one micro-batch."""
        start = step % self.per_epoch * self._count
        return [[self._row(number) for number in range(start, start + self._count)]]


class Stamps(Watch):
    """The outer clock: every step's end, its tokens, and snapshots of the fp32 weights."""

    def __init__(self, clock: Clock, batches: InOrder) -> None:
        self.clock, self.batches = clock, batches

    def stepped(self, run: TrainingRun[Any]) -> None:
        rows = self.batches.at(run.done.step - 1)[0]
        self.clock.tokens.append(sum(len(row.ids) for row in rows))
        self.clock.supervised.append(sum(sum(row.is_answer[1:]) for row in rows))
        self.clock.step()
        if self.clock.wants_snapshot():
            self.clock.snapshot(lambda folder: keep_masters(run, folder))


def keep_masters(run: TrainingRun[Any], folder: Path) -> None:
    """The weights as the optimiser has them; made a model folder when the clock has stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    state = run.weights.state() if run.average is None else {**run.weights.state(), **run.average.averages}
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, folder / "masters.safetensors")


def train(clock: Clock, model: Model, batches: InOrder) -> list[float]:
    """The loop of every stage; the losses."""
    config = RunConfig(
        steps=clock["steps"], save_every=10**6, validate_every=10**6, optim=optimizer(clock), **clock.get("run", {})
    )  # fmt: skip
    job = Job(work=clock.out / "work", log_path=clock.out / "log.jsonl", events=Events(), seed=clock["seed"])

    def loss_of(rows: Rows) -> Summed:
        batch = collate(rows)
        return Summed(summed_loss(model.network, batch), batch.targets.shape[0], batch.num_tokens)

    with (
        watching(Stamps(clock, batches)),
        TrainingRun(model, trainable(model.network), config, batches, job) as run,
    ):
        clock.begin()
        for step in run.steps():
            step.accumulate(loss_of)
            step.update()
    clock.settings["resolved"] = asdict(config)
    lines = (clock.out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def optimizer(clock: Clock) -> OptimConfig:
    """What all systems share, and over it what a recipe of ours chose (setting ``optim``)."""
    shared = {
        "learning_rate": clock["learning_rate"], "schedule": "constant", "warmup_steps": 0,
        "weight_decay": clock["weight_decay"], "beta1": clock["betas"][0], "beta2": clock["betas"][1],
        "clip_norm": clock["clip_norm"],
    }  # fmt: skip
    return OptimConfig(**{**shared, **clock.get("optim", {})})


def finish(clock: Clock, model: Model, losses: list[float]) -> None:
    resolved: dict[str, Any] = {"config": clock.settings.pop("resolved"), "settings": clock.settings}
    resolved["activations"] = str(model.activation_dtype)
    clock.finish(losses=losses, saved=str(clock.out / "saved"), resolved=resolved)


if __name__ == "__main__":
    sys.exit(main())
