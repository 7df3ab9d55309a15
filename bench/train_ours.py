"""One job of ours: LoRA on conversations, pre-training on token rows, or a recipe of our own choice.

    python bench/train_ours.py SETTINGS.json

Called by bench/train.py. One function a track. ``lora`` and ``pretrain`` go through the library's run with the losses
of its stages, on the rows that every other system gets, in that order; ``recipe`` calls the pretrain stage itself,
which orders rows its own way. ``run`` of the settings has keys of the stage's config. Each leaves weights that the
judge (train_score.py) can read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from safetensors.torch import load_file, save_file
from train_clock import Job as Clock
from train_clock import bytes_in_use, read_job, row_order

from danlu.core.config import from_mapping, to_mapping
from danlu.core.events import Events
from danlu.data.loader import TokenRows, TokenSource
from danlu.data.shards import TokenShards
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.models.save import save_model
from danlu.text.chat import RenderedChat
from danlu.train.loss import collate
from danlu.train.loss import summed_loss as answers_loss
from danlu.train.method import prepare, save_trained
from danlu.train.objectives import asked
from danlu.train.objectives.asked import Asked
from danlu.train.run import TrainingRun
from danlu.train.settings import Job, RunConfig
from danlu.train.stages.pretrain import PretrainConfig, pretrain
from danlu.train.start import load_to_train
from danlu.train.step import Summed
from danlu.train.watch import Watch, watching

Item = TypeVar("Item")
Counts = tuple[int, int]
"""Tokens of a step, and those with a label."""


def main() -> int:
    clock = read_job()
    {"lora": lora, "pretrain": token_rows, "recipe": recipe}[clock["track"]](clock)
    return 0


def lora(clock: Clock) -> None:
    """An adapter on a frozen base, loss on the answers."""
    config = config_of(clock, RunConfig, lora={"rank": clock["rank"], "alpha": clock["alpha"]})
    model = load_to_train(Path(clock["model"]), config)
    kept = json.loads(Path(clock["rows"]).read_text(encoding="utf-8"))["train"]
    rows = [RenderedChat(row["ids"], row["is_answer"]) for row in kept]
    tokens = sum(len(row.ids) for row in rows) * clock["rows_per_step"] // len(rows)
    batches = InOrder(rows.__getitem__, len(rows), clock["rows_per_step"], tokens)

    def loss_of(rows: Sequence[RenderedChat]) -> Summed:
        batch = collate(rows)
        before = bytes_in_use()
        loss = answers_loss(model.network, batch)
        clock.kept_bytes = max(clock.kept_bytes, bytes_in_use() - before)
        return Summed(loss, batch.targets.shape[0], batch.num_tokens)

    def counts(step: int) -> Counts:
        batch = batches.at(step)[0]
        return sum(len(row.ids) for row in batch), sum(sum(row.is_answer[1:]) for row in batch)

    train(clock, model, config, batches, loss_of, counts)
    save_trained(model, config, clock.out / "saved", base=clock["model"])
    finish(clock, model, config)


def token_rows(clock: Clock) -> None:
    """Every weight, loss on every token but the first of a row."""
    config = config_of(clock, RunConfig)
    model = load_to_train(Path(clock["model"]), config)
    ids, order = np.fromfile(clock["tokens"], dtype=np.uint16), row_order(clock)
    size, count = clock["row_tokens"], clock["rows_per_step"]

    def row(number: int) -> Asked:
        start = order[number] * size
        return asked.next_tokens(TokenRows(ids[start : start + size].astype(np.int64), np.array([size])))

    def loss_of(parts: Sequence[Asked]) -> Summed:
        before = bytes_in_use()
        loss = asked.summed_loss(model.network, asked.join(parts))
        clock.kept_bytes = max(clock.kept_bytes, bytes_in_use() - before)
        return loss

    batches = InOrder(row, len(order), count, count * size)
    train(clock, model, config, batches, loss_of, lambda _: (count * size, count * (size - 1)))
    save_model(model, clock.out / "saved")
    finish(clock, model, config)


def recipe(clock: Clock) -> None:
    """The pretrain stage with settings of our choice; the same documents."""
    config = config_of(clock, PretrainConfig, samples=0)
    model = load_to_train(Path(clock["model"]), config)
    sources = [TokenSource(shards=TokenShards(Path(clock["shards"])))]
    with watching(Stamps(clock, lambda _: (config.tokens_per_step, config.tokens_per_step))):
        clock.begin()
        pretrain(model, sources, None, config, job_of(clock))
    save_model(model, clock.out / "saved")
    for snapshot in clock.snapshots:
        restored = load_model(Path(clock["model"]), precision="fp32")
        restored.network.load_state_dict(load_file(Path(snapshot["folder"]) / "masters.safetensors"), strict=False)
        save_model(restored, Path(snapshot["folder"]))
    finish(clock, model, config)


class InOrder(Generic[Item]):
    """The rows of each step, in the order they come, again from the start when they are over."""

    def __init__(self, row: Callable[[int], Item], num_rows: int, rows_per_step: int, tokens_per_step: int) -> None:
        self._row, self._count = row, rows_per_step
        self.per_epoch = num_rows // rows_per_step
        self.tokens_per_step = tokens_per_step

    def at(self, step: int, rank: int = 0, world_size: int = 1) -> list[list[Item]]:
        """All rows of the step as one micro-batch."""
        start = step % self.per_epoch * self._count
        return [[self._row(number) for number in range(start, start + self._count)]]


class Stamps(Watch):
    """The outer clock: every step's end, its tokens, and snapshots of the fp32 weights."""

    def __init__(self, clock: Clock, counts: Callable[[int], Counts]) -> None:
        self.clock, self.counts = clock, counts

    def stepped(self, run: TrainingRun[Any]) -> None:
        tokens, supervised = self.counts(run.done.step - 1)
        self.clock.tokens.append(tokens)
        self.clock.supervised.append(supervised)
        self.clock.step()
        if self.clock.wants_snapshot():
            self.clock.snapshot(lambda folder: keep_masters(run, folder))


def keep_masters(run: TrainingRun[Any], folder: Path) -> None:
    """The weights to be judged as the run has them; made a model folder when the clock has stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    state = run.weights.state() if run.average is None else {**run.weights.state(), **run.average.averages}
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, folder / "masters.safetensors")


def train(
    clock: Clock, model: Model, config: RunConfig, batches: InOrder[Item],
    loss_of: Callable[[Sequence[Item]], Summed], counts: Callable[[int], Counts],
) -> None:  # fmt: skip
    """The loop of every stage."""
    with (
        watching(Stamps(clock, counts)),
        TrainingRun(model, prepare(model, config), config, batches, job_of(clock)) as run,
    ):
        clock.begin()
        for step in run.steps():
            step.accumulate(loss_of)
            step.update()


def config_of(clock: Clock, kind: type[Any], **more: Any) -> Any:
    """What all systems share, and over it what this run chose (setting ``run``)."""
    chosen = dict(clock.get("run", {}))
    optim = {
        "learning_rate": clock["learning_rate"], "schedule": "constant", "warmup_steps": 0,
        "weight_decay": clock["weight_decay"], "beta1": clock["betas"][0], "beta2": clock["betas"][1],
        "clip_norm": clock["clip_norm"], **chosen.pop("optim", {}),
    }  # fmt: skip
    fixed = {"steps": clock["steps"], "save_every": 10**6, "validate_every": 10**6, "audit": "off"}
    return from_mapping(kind, {**fixed, "optim": optim, **more, **chosen}, "run")


def job_of(clock: Clock) -> Job:
    return Job(work=clock.out / "work", log_path=clock.out / "log.jsonl", events=Events(), seed=clock["seed"])


def finish(clock: Clock, model: Model, config: RunConfig) -> None:
    """Losses from the run's own curve, and the settings in full."""
    lines = [json.loads(line) for line in (clock.out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    resolved: dict[str, Any] = {"config": to_mapping(config), "settings": clock.settings}
    clock.finish(
        losses=[line["loss"] for line in lines if "loss" in line], saved=str(clock.out / "saved"), resolved=resolved
    )


if __name__ == "__main__":
    sys.exit(main())
