"""Learning-rate schedules as a share of the peak. A pure function of the step, so that a resumed run needs nothing.

Knows no optimiser and no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from danlu.core.errors import ConfigError

Shape = Literal["cosine", "wsd", "linear", "constant"]
Decay = Literal["1-sqrt", "linear"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Up in a line over ``num_warmup`` steps, then down to ``final_share`` of the peak.

    With n = num_steps, w = num_warmup, d = num_decay and f = final_share, step s (from 0) has the share

        (s + 1) / w                              for s < w: the first step moves already, and step w - 1 has all
        f + (1 - f) (1 + cos πp) / 2             cosine (Loshchilov & Hutter 2017), p = (s - w) / (n - w)
        f + (1 - f) (1 - p)                      linear, the same p
        1, then f + (1 - f) (1 - √p)             wsd (Hu et al. 2024; Hägele et al. 2024 for the root), or (1 - p) with
                                                 a linear decay; p = (s - (n - d)) / d over the last d steps
        1                                        constant

    Steps beyond the last have the share of p = 1.
    """

    shape: Shape
    num_steps: int
    num_warmup: int
    num_decay: int = 0
    decay: Decay = "1-sqrt"
    final_share: float = 0.0

    def __post_init__(self) -> None:
        falls = self.num_decay if self.shape == "wsd" else 0
        if self.num_warmup + falls > self.num_steps:
            after = f" and decay {falls}" if falls else ""
            raise ConfigError(
                f"Warm-up takes {self.num_warmup} steps{after}, but the run has {self.num_steps}.",
                "Lower warmup_steps, or train longer.",
            )

    def share(self, step: int) -> float:
        """Share of the peak rate in ``step``, counted from 0."""
        if step < self.num_warmup:
            return (step + 1) / self.num_warmup
        if self.shape == "constant":
            return 1.0
        start = self.num_steps - self.num_decay if self.shape == "wsd" else self.num_warmup
        progress = min(1.0, max(0.0, (step - start) / max(1, self.num_steps - start)))
        if self.shape == "cosine":
            left = 0.5 * (1.0 + math.cos(math.pi * progress))
        elif self.shape == "wsd" and self.decay == "1-sqrt":
            left = 1.0 - math.sqrt(progress)
        else:
            left = 1.0 - progress
        return self.final_share + (1.0 - self.final_share) * left
