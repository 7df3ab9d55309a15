"""What every training loop needs around it: steps that resume, count, skip and save. Knows no method and no data.

A stage owns its loop and says what a loss is:

    with TrainingRun(model, parameters, config, batches, job) as run:
        for step in run.steps():
            step.accumulate(loss_of)          # forward and backward, micro-batch after micro-batch
            step.update()                     # one move of the optimiser, with the global mean
            if step.validates:
                step.report(validate())

Everything random in a step comes from the seed, the step and the rank, and which rows it sees is a function of the
step: a run that was killed ends with the same weights.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from danlu.core.errors import ConfigError, ResourceError, TrainError
from danlu.core.events import Bar, Events
from danlu.core.memory import release_memory
from danlu.models.model import Model
from danlu.train.batches import Batches
from danlu.train.checkpoint import load_checkpoint, load_optimizer_tensors, optimizer_tensors, save_checkpoint
from danlu.train.curve import CurveLog
from danlu.train.interrupts import HeldBack
from danlu.train.optim import OptimConfig, make_optimizer, rate_at
from danlu.train.weights import Weights

Item = TypeVar("Item")

RELEASE_EVERY = 4
"""Steps between handing freed memory back: batches differ in size, and the allocator keeps what does not fit again."""
MAX_SKIPPED_STEPS = 5
"""Steps whose gradient is not a number are skipped; after this many in a row training stops."""
_SPIKE_WINDOW = 50
"""Losses that a new one is compared with."""
_SPIKE_SPREADS = 6.0
"""A loss this many times the usual spread above the usual is a spike."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every kind of training has in common."""

    steps: int = 100
    """Optimiser steps."""
    epochs: float | None = None
    """Instead of steps: how many times every row is seen."""
    micro_tokens: int | None = None
    """Most tokens that go through the network at once; a step that has more is done in parts. None: all at once."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser."""
    validate_every: int = 40
    """Steps between losses on the validation rows."""
    max_validation_rows: int = 60
    """Validation rows used."""
    save_every: int = 20
    """Steps between checkpoints."""
    patience: int = 0
    """Stop after this many validations without a better loss; 0 for never."""
    keep: Literal["last", "best"] = "last"
    """Which weights to end with: the last ones, or those of the best validation."""

    def __post_init__(self) -> None:
        for name in ("steps", "validate_every", "save_every", "micro_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}.", "Use 1 or more.")
        if self.epochs is not None and self.epochs <= 0:
            raise ConfigError(f"epochs is {self.epochs}.", "Use a positive number such as 3.")
        for name in ("patience", "max_validation_rows"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Use 0 or more.")


class Team(Protocol):
    """The processes that train together."""

    @property
    def rank(self) -> int:
        """Which of them this is, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value added up over all processes."""
        ...

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add gradients up over all processes, in place; a missing one counts as zeros."""
        ...


@dataclass(frozen=True)
class Alone:
    """One process."""

    rank: int = 0
    size: int = 1

    def sum(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Nothing to add."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Where a run does its work."""

    work: Path
    """Keeps checkpoints; the same folder again goes on from the newest."""
    log_path: Path
    """Gets the curve when the run is done."""
    events: Events
    """Progress and messages."""
    seed: int
    """For everything random."""
    team: Team = field(default_factory=Alone)
    """The processes that train together."""


@dataclass(frozen=True)
class Summed:
    """A loss before it is made a mean."""

    total: Tensor
    """Sum over what is supervised, a scalar."""
    count: float
    """What the sum is divided by: supervised tokens, rows, pairs."""
    tokens: int
    """Tokens that went through the network."""
    parts: Mapping[str, float | Tensor] = field(default_factory=dict[str, "float | Tensor"])
    """More sums over the same count, for the curve."""


LossOf = Callable[[Sequence[Item]], Summed]


class TrainingRun(Generic[Item]):
    """A run around a stage's loop: a context manager."""

    def __init__(
        self,
        model: Model,
        parameters: Mapping[str, nn.Parameter],
        config: RunConfig,
        batches: Batches[Item],
        job: Job,
    ) -> None:
        """``parameters`` are those of ``model.network`` that train, by name."""
        torch.manual_seed(job.seed)  # pyright: ignore[reportUnknownMemberType]
        self.model = model
        self.config = config
        self.job = job
        self.batches = batches
        self.num_steps = config.steps if config.epochs is None else max(1, round(config.epochs * batches.per_epoch))
        self.weights = Weights(model.network, parameters, model.activation_dtype)
        self.optimizer = make_optimizer(list(self.weights.masters.values()), config.optim)
        self.done = _Done()
        self.curve = CurveLog(job.work / "log.jsonl")
        self._recent: deque[float] = deque(maxlen=_SPIKE_WINDOW)
        self._is_between_steps = True
        self._stops = False
        self._interrupts = HeldBack()

    def __enter__(self) -> TrainingRun[Item]:
        self._resume()
        self._entered = self.job.events.bar("train", total=self.num_steps, unit="step", done=self.done.step)
        self._bar = self._entered.__enter__()
        self._interrupts.__enter__()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._interrupts.__exit__(kind, error, trace)
        if isinstance(error, KeyboardInterrupt) and self._is_between_steps:
            self.save()
            self.job.events.say(f"Saved after step {self.done.step}; the same command goes on from there.")
        self._entered.__exit__(kind, error, trace)
        if error is None:
            self._finish()

    def steps(self) -> Iterator[Step[Item]]:
        """The steps that are left."""
        self.model.network.train()
        while self.done.step < self.num_steps and not self._stops:
            self._interrupts.let_through()
            yield Step(self)
            if self.done.step % RELEASE_EVERY == 0:
                release_memory()
            if self.done.step % self.config.save_every == 0 or self.done.step == self.num_steps or self._stops:
                self.save()
        self._interrupts.let_through()

    @property
    def bar(self) -> Bar:
        """The progress bar."""
        return self._bar

    def save(self) -> None:
        """Write a checkpoint."""
        tensors = {**self.weights.state(), **optimizer_tensors(self.optimizer)}
        save_checkpoint(self.job.work, self.done.step, tensors, {**vars(self.done), "lines": len(self.curve.lines)})

    def metrics(self) -> dict[str, Any]:
        """What the run came to."""
        losses, validation = self.curve.values("loss"), self.curve.values("validation_loss")
        trained = sum(master.numel() for master in self.weights.masters.values())
        return {
            "steps": self.done.step,
            "trainable_parameters": trained,
            "train_tokens_per_s": round(self.done.tokens / self.done.seconds, 1),
            "first_loss": losses[0] if losses else None,
            "last_loss": losses[-1] if losses else None,
            "validation_loss": validation[-1] if validation else None,
            "best_validation_loss": min(validation) if validation else None,
            "best_step": self.done.best_step,
            "skipped_steps": self.done.skipped,
            "loss_spikes": self.done.spikes,
            "stopped_early": self.done.step < self.num_steps,
        }

    def finish_step(self, loss: float, norm: float, rate: float, tokens: int, seconds: float, parts: Any) -> None:
        """Count one step and write its line."""
        done = self.done
        done.count(tokens, seconds, is_skipped=not math.isfinite(norm))
        if self._is_spike(loss):
            done.spikes += 1
            self.job.events.log("loss spike", step=done.step, loss=loss, usual=statistics.median(self._recent))
        self._recent.append(loss)
        self.curve.add({"step": done.step, "loss": loss, "lr": rate, "grad_norm": norm, **parts})
        self._is_between_steps = True
        self._bar.advance(1, loss=loss, tokens_per_s=tokens / seconds, grad_norm=norm)

    def _is_spike(self, loss: float) -> bool:
        if len(self._recent) < _SPIKE_WINDOW // 2 or not math.isfinite(loss):
            return False
        usual = statistics.median(self._recent)
        spread = statistics.median(abs(value - usual) for value in self._recent)
        return loss > usual + _SPIKE_SPREADS * max(spread, 1e-3 * abs(usual))

    def validated(self, values: Mapping[str, Any]) -> None:
        """Write a validation's line; remember the best; stop when patience is over."""
        done = self.done
        self.curve.add({"step": done.step, **values})
        loss = values["validation_loss"]
        if not math.isfinite(loss):
            return
        if done.best_loss is None or loss < done.best_loss:
            done.best_loss, done.best_step, done.worse_in_a_row = loss, done.step, 0
            if self.config.keep == "best":
                save_checkpoint(self.job.work / "best", done.step, self.weights.state(), {"validation_loss": loss})
            return
        done.worse_in_a_row += 1
        if self.config.patience and done.worse_in_a_row >= self.config.patience and done.step < self.num_steps:
            self._stops = True
            self.job.events.say(
                f"Stopped after step {done.step}: no better validation loss than {done.best_loss:.4f} of step "
                f"{done.best_step} in {done.worse_in_a_row} validations."
            )

    def _resume(self) -> None:
        """Load the newest whole checkpoint, if any."""
        checkpoint = load_checkpoint(self.job.work)
        if checkpoint is None:
            self.curve.truncate(0)
            return
        weights = {n: t for n, t in checkpoint.tensors.items() if not n.startswith("optimizer.")}
        self.weights.load_state(weights)
        load_optimizer_tensors(self.optimizer, checkpoint.tensors)
        values = dict(checkpoint.values)
        self.curve.truncate(values.pop("lines"))
        self.done = _Done(**values)
        self._recent.extend(self.curve.values("loss")[-_SPIKE_WINDOW:])
        self._stops = bool(self.config.patience) and self.done.worse_in_a_row >= self.config.patience
        self.job.events.say(f"Going on after step {checkpoint.step}.")

    def _finish(self) -> None:
        """Leave the model with the weights to keep, ready to be used and saved."""
        if self.config.keep == "best":
            best = load_checkpoint(self.job.work / "best")
            if best is not None:
                self.weights.load_state(best.tensors)
        self.weights.put_back()
        self.weights.clear_gradients()
        self.model.network.eval()
        self.curve.copy_to(self.job.log_path)


class Step(Generic[Item]):
    """One step: gradients are added up, then the optimiser moves once."""

    def __init__(self, run: TrainingRun[Item]) -> None:
        self._run = run
        self._started = time.perf_counter()
        self.number = run.done.step + 1
        """From 1."""
        self._loss = self._count = 0.0
        self._tokens = 0
        self._parts: dict[str, float] = {}

    def accumulate(self, loss_of: LossOf[Item]) -> None:
        """Forward and backward for each micro-batch of this rank.

        When memory runs out, micro-batches are halved and the step is done again: the batch stays the same.
        """
        run, team = self._run, self._run.job.team
        run._is_between_steps = False
        while True:
            parts = run.batches.at(run.done.step, team.rank, team.size)
            torch.manual_seed((run.job.seed * 1_000_003 + run.done.step) * 1_009 + team.rank)  # pyright: ignore[reportUnknownMemberType]
            try:
                for items in _halved(parts, run.done.halvings):
                    if items:
                        self.backward(loss_of(items))
                return
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if all(len(items) <= 1 for items in _halved(parts, run.done.halvings)):
                    raise ResourceError(
                        "A single row needs more memory than there is.", "Use shorter rows or a smaller model."
                    ) from error
            run.done.halvings += 1
            self._loss = self._count = 0.0
            self._tokens, self._parts = 0, {}
            run.weights.clear_gradients()
            release_memory()
            run.job.events.say(
                f"Out of memory in step {self.number}: micro-batches are halved, the batch stays the same."
            )

    def backward(self, loss: Summed) -> None:
        """Add one micro-batch's gradient."""
        if loss.total.requires_grad:
            loss.total.backward()  # pyright: ignore[reportUnknownMemberType]
        self._loss += float(loss.total.detach())
        self._count += float(loss.count)
        self._tokens += loss.tokens
        for name, value in loss.parts.items():
            self._parts[name] = self._parts.get(name, 0.0) + float(value)

    def update(self) -> None:
        """Move the weights by the global mean gradient; a step whose gradient is not finite changes nothing."""
        run, config = self._run, self._run.config
        masters = list(run.weights.masters.values())
        names = sorted(self._parts)
        sums = run.job.team.sum([self._loss, self._count, self._tokens, *(self._parts[name] for name in names)])
        loss, count, tokens = sums[0], sums[1], round(sums[2])
        run.job.team.sum_gradients(masters)
        run.weights.scale_gradients(1.0 / max(count, 1e-12))
        rate = rate_at(run.done.step, run.num_steps, config.optim)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        norm = float(nn.utils.clip_grad_norm_(masters, config.optim.clip_norm))
        if math.isfinite(norm):
            run.optimizer.step()
            run.weights.round()
        run.weights.clear_gradients()
        parts = {name: value / max(count, 1e-12) for name, value in zip(names, sums[3:], strict=True)}
        run.finish_step(
            loss / max(count, 1e-12), norm, rate, tokens, time.perf_counter() - self._started, parts
        )  # fmt: skip

    @property
    def validates(self) -> bool:
        """Whether it is time for a look at the validation rows."""
        done = self._run.done.step
        return done % self._run.config.validate_every == 0 or done == self._run.num_steps

    def report(self, values: Mapping[str, Any]) -> None:
        """Tell what a validation found; ``validation_loss`` decides which weights are best."""
        self._run.validated(values)


@dataclass
class _Done:
    """What has been done so far, earlier attempts included."""

    step: int = 0
    tokens: int = 0
    """Tokens of all rows trained on."""
    seconds: float = 0.0
    skipped: int = 0
    """Steps whose gradient was not a number."""
    skipped_in_a_row: int = 0
    halvings: int = 0
    """How often micro-batches were halved for want of memory."""
    spikes: int = 0
    """Losses far above their neighbours."""
    best_loss: float | None = None
    best_step: int | None = None
    worse_in_a_row: int = 0
    """Validations since the best one."""

    def count(self, tokens: int, seconds: float, *, is_skipped: bool) -> None:
        """One more step; TrainError when too many in a row were skipped."""
        self.step += 1
        self.tokens += tokens
        self.seconds += seconds
        self.skipped += is_skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if is_skipped else 0
        if self.skipped_in_a_row >= MAX_SKIPPED_STEPS:
            raise TrainError(
                f"The gradient was not a number {self.skipped_in_a_row} steps in a row (up to step {self.step}).",
                "Lower optim.learning_rate; the last good checkpoint is kept.",
            )


def _halved(parts: Sequence[Sequence[Item]], times: int) -> list[Sequence[Item]]:
    """Micro-batches, each in 2^times pieces where it has so many items."""
    pieces: list[Sequence[Item]] = []
    for items in parts:
        size = max(1, math.ceil(len(items) / 2**times))
        pieces += [items[i : i + size] for i in range(0, len(items), size)]
    return pieces


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error).lower()
