"""One step of a run: micro-batches forward and backward, then one move. Knows no method and no files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from danlu.core.errors import ResourceError
from danlu.core.memory import release_memory
from danlu.train.clip import clip_by_norm
from danlu.train.optim import rate_at

if TYPE_CHECKING:
    from danlu.train.run import TrainingRun

Item = TypeVar("Item")


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
        run, world = self._run, self._run.job.world
        run.is_between_steps = False
        while True:
            run.reduction.before_first()
            parts = run.batches.at(run.done.step, world.rank, world.size)
            pieces = self._even([items for items in _halved(parts, run.done.halvings) if items])
            seed = (run.job.seed * 1_000_003 + run.done.step) * 1_009 + world.rank
            torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
            try:
                for number, items in enumerate(pieces, start=1):
                    if number == len(pieces):
                        run.reduction.before_last()
                    self.backward(loss_of(items) if items else self._idle(loss_of))
                return
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if self._is_sharded:  # others are in the middle of this pass
                    raise ResourceError(
                        f"Memory ran out in step {self.number}, and spread weights cannot take it in smaller parts.",
                        "Give micro_tokens, or smaller ones, or recompute: full.",
                    ) from error
                if all(len(items) <= 1 for items in pieces):
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

    @property
    def _is_sharded(self) -> bool:
        """Whether processes compute together, pass by pass."""
        return self._run.job.world.size > 1 and self._run.config.parallel == "fsdp"

    def _even(self, pieces: list[Sequence[Item]]) -> list[Sequence[Item]]:
        """Every process makes at least one pass. Sharded weights meet in every pass, so there all make equally many;
        a process that has less to do makes idle ones."""
        if not self._is_sharded:
            return pieces or [()]
        (most,) = self._run.job.world.max([len(pieces)])
        return [*pieces, *([()] * (round(most) - len(pieces)))]

    def _idle(self, loss_of: LossOf[Item]) -> Summed:
        """A pass over some row of the batch that counts for nothing."""
        run = self._run
        some = next(items[0] for items in run.batches.at(run.done.step, 0, 1) if items)
        loss = loss_of([some])
        return Summed(loss.total * 0.0, 0.0, 0, dict.fromkeys(loss.parts, 0.0))

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
        run = self._run
        run.reduction.finish()
        names = sorted(self._parts)
        asked = float(run.interrupts.is_asked)
        mine = [asked, self._loss, self._count, self._tokens, *(self._parts[name] for name in names)]
        asked, loss, count, tokens, *sums = run.job.world.sum(mine)
        run.interrupts.is_asked = asked > 0  # all processes stop after the same step
        run.weights.scale_gradients(1.0 / max(count, 1e-12))
        run.watch.has_gradients(run, count)
        gradients = {name: m.grad for name, m in run.weights.masters.items() if m.grad is not None}
        norm = clip_by_norm(gradients, run.optim.clip_norm)
        rate = rate_at(run.done.step, run.num_steps, run.optim)
        if math.isfinite(norm):
            run.optimizer.set_rate(rate)
            run.optimizer.step()
            run.weights.round()
            if run.average is not None:
                run.average.update()
        run.weights.clear_gradients()
        parts = {name: value / max(count, 1e-12) for name, value in zip(names, sums, strict=True)}
        seconds = time.perf_counter() - self._started
        run.finish_step(loss / max(count, 1e-12), norm, rate, round(tokens), seconds, parts)

    @property
    def validates(self) -> bool:
        """Whether it is time for a look at the validation rows."""
        done = self._run.done.step
        return done % self._run.config.validate_every == 0 or done == self._run.num_steps

    @contextmanager
    def validating(self) -> Iterator[None]:
        """The network as it is used: without dropout and gradients, with averaged weights where there is an average."""
        run = self._run
        run.model.network.eval()
        swapped = nullcontext() if run.average is None else run.average.swapped(run.weights.round)
        with torch.no_grad(), swapped:
            yield
        run.model.network.train()

    def report(self, values: Mapping[str, Any]) -> None:
        """Tell what a validation found; ``validation_loss`` decides which weights are best."""
        self._run.validated(values)


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
