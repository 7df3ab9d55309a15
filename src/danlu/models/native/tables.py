"""Tables by position as the kernels read them, made for as many positions as were ever needed. Knows no tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from danlu.models.positions import Rotary, RotaryConfig


class Angles:
    """Cosines and sines of positions as the kernels read them, made for as many positions as were ever needed."""

    def __init__(self, kinds: list[RotaryConfig]) -> None:
        self._rotaries = [Rotary(kind) for kind in kinds]
        self.tables: list[Tensor] = []
        self._count = 0

    def reach(self, count: int) -> None:
        """Have tables of at least so many positions: (positions, turned channels), cosines first."""
        if count <= self._count or not self._rotaries:
            return
        self._count = 1 << max(9, (count - 1).bit_length())
        positions = torch.arange(self._count)
        self.tables = []
        for rotary in self._rotaries:
            cos, sin = rotary(positions, torch.float32)
            half = cos.shape[-1] // 2  # sines carry the sign of the half rotation in their first half
            self.tables.append(torch.cat([cos[:, 0, :half], sin[:, 0, half:]], dim=1).contiguous())


class Distances:
    """Biases of scores by distance as the kernels read them: (H, distances), the longest row's first."""

    def __init__(self, relative: nn.Module | None) -> None:
        self._relative = relative
        self.table: Tensor | None = None
        self.zero = 0

    def reach(self, count: int) -> None:
        """Have biases of distances below ``count``, both ways, and a page more for what is masked."""
        if self._relative is None or count <= self.zero:
            return
        self.zero = 1 << max(9, (count - 1).bit_length())
        found: Tensor = self._relative(torch.arange(-self.zero, self.zero + 64).unsqueeze(0))  # (H, 1, distances)
        self.table = found.squeeze(1).float().contiguous()
