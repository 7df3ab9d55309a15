"""What recurrent layers have in common: how they go along rows, a short convolution that remembers its last tokens, and
a gated norm. Knows no recurrence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from danlu.models.attention import Attend, State

_SPAN = 512
"""Tokens of a batch that are read at once: what is in between then fits into the caches of a CPU."""


Read = Callable[[Sequence[Tensor], Tensor | None, State], tuple[Tensor, State]]
"""A recurrent layer's work on the next T tokens of each row. What was projected, each part (B, T, …) and padded on the
right; which tokens are real, bool (B, T), None for all; the state → (B, T, …) and the new state."""


def along_rows(
    attend: Attend, layer: int, read: Read, parts: Sequence[Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> Tensor:
    """Read rows from start to end, a span at a time, from the state they left off with.

    parts: (N, …) → (N, …), at least fp32, as the state is; ``shapes`` are the state's.
    """
    rows, real, state = [attend.spread(part) for part in parts], attend.real_tokens(), attend.state(layer)
    batch = rows[0].shape[0]
    dtype = torch.promote_types(rows[0].dtype, torch.float32)
    if state is None:
        state = {name: rows[0].new_zeros(batch, *shape, dtype=dtype) for name, shape in shapes.items()}
    span = max(_SPAN // batch, 64)
    spans = list(zip(*(row.split(span, dim=1) for row in rows), strict=True))  # slices would cost T² going backward
    reals = [None] * len(spans) if real is None else real.split(span, dim=1)
    outputs: list[Tensor] = []
    for here, real_here in zip(spans, reals, strict=True):
        y, state = read([part.to(dtype) for part in here], real_here, state)
        outputs.append(y)
    attend.keep(layer, state)
    return attend.pack(outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1))


class ShortConvolution(nn.Module):
    """Each channel becomes silu of a weighted sum of its last ``taps`` values in the row."""

    def __init__(self, channels: int, taps: int, *, bias: bool) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(taps)
        self.weight = nn.Parameter(torch.empty(channels, taps).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor, before: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """x: (B, T, C), padded on the right; before: (B, taps - 1, C), the values before them; real: bool (B, T), None
        for all → y (B, T, C) and the last taps - 1 real values."""
        window = torch.cat([before, x], dim=1)
        weight = self.weight.to(x.dtype).t().contiguous()  # (taps, C): a tap is one row
        y = window[:, : x.shape[1]] * weight[0]
        for tap in range(1, weight.shape[0]):
            y = y.addcmul_(window[:, tap : tap + x.shape[1]], weight[tap])
        if self.bias is not None:
            y = y + self.bias
        return nn.functional.silu(y), self._last(window, real)

    def _last(self, window: Tensor, real: Tensor | None) -> Tensor:
        keep = self.weight.shape[1] - 1
        if real is None:
            return window[:, window.shape[1] - keep :]
        places = real.sum(dim=1, keepdim=True) + torch.arange(keep, device=window.device)  # (B, taps - 1)
        return window.gather(1, places.unsqueeze(-1).expand(-1, -1, window.shape[2]))


class GatedNorm(nn.Module):
    """Root-mean-square norm of groups with a silu gate: before the norm (Mamba-2) or after it (DeltaNet)."""

    def __init__(self, width: int, epsilon: float, *, num_groups: int = 1, gate_first: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon
        self.num_groups = num_groups
        self.gate_first = gate_first

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """x, gate: (…, width) → (…, width) in x's own type; statistics at least fp32."""
        gate = nn.functional.silu(gate.to(x.dtype))
        if self.gate_first:
            x = x * gate
        groups = x.unflatten(-1, (self.num_groups, -1))
        x = nn.functional.rms_norm(groups, groups.shape[-1:], eps=self.epsilon).flatten(-2) * self.weight
        return x if self.gate_first else x * gate
