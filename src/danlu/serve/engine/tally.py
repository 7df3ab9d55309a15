"""What a lane counts: tokens, steps, waits, seconds. Written by the engine's thread, read by any."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from danlu.serve.engine.request import ModelStatus

_WAIT_BOUNDS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Tally:
    """Counts from the start of a lane."""

    def __init__(self) -> None:
        self.tokens: Counter[str] = Counter()
        """By what happened to them: a field of ModelStatus each, without its ``_tokens``."""
        self.steps: Counter[int] = Counter()
        """By rows."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """By part."""
        self._waits = [0] * (len(_WAIT_BOUNDS_S) + 1)
        self._wait_s = 0.0

    def waited(self, seconds: float) -> None:
        """A request had its first step after so long."""
        self._wait_s += seconds
        self._waits[next((i for i, bound in enumerate(_WAIT_BOUNDS_S) if seconds <= bound), -1)] += 1

    def status(self, **now: Any) -> ModelStatus:
        """All of it, and what else is so ``now``."""
        totals: list[int] = []
        for count in self._waits:
            totals.append(count + (totals[-1] if totals else 0))
        return ModelStatus(
            **{f"{name}_tokens": count for name, count in dict(self.tokens).items()},
            steps_by_batch_size=dict(self.steps),
            queue_waits_s=_WAIT_BOUNDS_S,
            queue_counts=tuple(totals),
            queue_total_s=self._wait_s,
            seconds=dict(self.seconds),
            **now,
        )
