"""How far a run has come: counts, the best validation, and losses that jump. Knows no network and no files.

``vars`` of a ``Progress`` are what a checkpoint keeps of it.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from danlu.core.errors import TrainError

MAX_SKIPPED_STEPS = 5
"""Steps whose gradient is not a number are skipped; after this many in a row training stops."""
_SPIKE_WINDOW = 50
"""Losses that a new one is compared with."""
_SPIKE_SPREADS = 6.0
"""A loss this many times the usual spread above the usual is a spike."""


@dataclass
class Progress:
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

    def is_best(self, loss: float) -> bool:
        """Whether a validation's loss, a number, is the lowest so far; both ways it is remembered."""
        if self.best_loss is not None and loss >= self.best_loss:
            self.worse_in_a_row += 1
            return False
        self.best_loss, self.best_step, self.worse_in_a_row = loss, self.step, 0
        return True


class RecentLosses:
    """The last losses, and whether another one stands out."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_SPIKE_WINDOW)

    @property
    def usual(self) -> float:
        """The middle one."""
        return statistics.median(self._recent)

    def extend(self, losses: Iterable[float]) -> None:
        """Remember ``losses``."""
        self._recent.extend(losses)

    def is_spike(self, loss: float) -> bool:
        """Whether ``loss`` is far above them, judged by their median absolute deviation; never among the first few."""
        if len(self._recent) < _SPIKE_WINDOW // 2 or not math.isfinite(loss):
            return False
        usual = self.usual
        spread = statistics.median(abs(value - usual) for value in self._recent)
        return loss > usual + _SPIKE_SPREADS * max(spread, 1e-3 * abs(usual))
