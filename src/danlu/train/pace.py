"""How fast a run goes, how fast it could go, and what it will cost: measured, in its own first steps.

The peak is what a large matrix product reaches on this machine in the run's number type, so the share of it is honest
on a laptop too. FLOPs of a token are 2 a weight of the blocks' linears forward, 2 for gradients of activations and 2
for gradients of weights that train (Kaplan et al. 2020, section 2.1); attention and the head are left out.
"""

from __future__ import annotations

import functools
import resource
import sys
import time
from collections.abc import Mapping

import torch
from torch import nn

from danlu.lineage.energy import EnergyMeter
from danlu.lineage.manifest import Energy

PROBE_STEPS = 10
"""Steps after which the plan is told."""
_WORTH_TELLING_S = 10.0
"""What is left must take this long to need a plan."""
_PEAK_SIDE = 1024
_PEAK_S = 0.15


class Pace:
    """The speed of one run."""

    def __init__(
        self, hidden: Mapping[str, nn.Parameter], device: torch.device, dtype: torch.dtype, num_steps: int
    ) -> None:
        """``hidden`` are the weights of the blocks' linears by name, frozen ones too."""
        trained = sum(weight.numel() for weight in hidden.values() if weight.requires_grad)
        self._flops_per_token = 4.0 * sum(weight.numel() for weight in hidden.values()) + 2.0 * trained
        self._device = device
        self._dtype = dtype
        self._num_steps = num_steps
        self._meter = EnergyMeter()
        self._steps = self._tokens = 0
        self._seconds = 0.0

    def share_of_peak(self, tokens: int, seconds: float) -> float:
        """FLOPs a second of a step over what a matrix product reaches, 0 to about 1."""
        return self._flops_per_token * tokens / max(seconds, 1e-9) / peak_flops(self._device, self._dtype)

    def mean_share(self, tokens: int, seconds: float) -> float:
        """The same over many steps; 0 when there were none."""
        return self.share_of_peak(tokens, seconds) if seconds else 0.0

    def energy(self) -> Energy:
        """What this process has used since the run began."""
        return self._meter.so_far()

    def after_step(self, tokens: int, seconds: float, done: int) -> str | None:
        """Take in a step; after the first few, a sentence that says what the rest will take."""
        self._steps += 1
        self._tokens += tokens
        self._seconds += seconds
        left = self._num_steps - done
        left_s = left * self._seconds / self._steps
        if self._steps != PROBE_STEPS or left_s < _WORTH_TELLING_S:
            return None
        energy = self._meter.so_far()
        per_step = energy.value_wh / self._steps
        minutes, rest = divmod(round(left_s), 60)
        whole = per_step * (left + self._steps)
        return (
            f"Plan: {self._tokens / self._seconds:,.0f} tokens/s, {left:,} steps left in about {minutes}:{rest:02d}, "
            f"{peak_rss_bytes() / 1e9:.2f} GB at most so far, about {whole:.2g} Wh and "
            f"{whole * energy.grid_kg_per_kwh:.2g} g CO2 in all ({energy.method})."
        )


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of a large matrix product here, measured once."""
    if device.type == "meta":
        return float("inf")
    a = b = torch.full((_PEAK_SIDE, _PEAK_SIDE), 0.5, device=device, dtype=dtype)
    best = float("inf")
    deadline = time.perf_counter() + _PEAK_S
    with torch.inference_mode():
        while time.perf_counter() < deadline:
            started = time.perf_counter()
            torch.nn.functional.linear(a, b)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - started)
    return 2.0 * _PEAK_SIDE**3 / best


def peak_rss_bytes() -> int:
    """Most memory this process has had."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
