"""Rotary positions (Su et al. 2021), half-split layout as in Llama checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Rotary(nn.Module):
    """Table of cosines and sines per position, kept in fp32 and cast last: angles in bf16 lose long positions."""

    cos: Tensor
    sin: Tensor

    def __init__(self, head_width: int, context_length: int, base: float) -> None:
        super().__init__()
        self._shape = (head_width, context_length, base)
        cos, sin = self._table()
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _table(self) -> tuple[Tensor, Tensor]:
        head_width, context_length, base = self._shape
        frequencies = base ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
        angles = torch.outer(torch.arange(context_length, dtype=torch.float32), frequencies)
        angles = torch.cat([angles, angles], dim=-1)
        sign = torch.cat([-torch.ones(head_width // 2), torch.ones(head_width // 2)])
        return angles.cos(), angles.sin() * sign

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(N,) → cos, sin of shape (N, 1, E); sin carries the sign of the half rotation."""
        return self.cos[positions].to(dtype).unsqueeze(1), self.sin[positions].to(dtype).unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn heads by their positions. x: (N, H, E); cos, sin: (N, 1, E) → (N, H, E)."""
    half = x.shape[-1] // 2
    return torch.addcmul(x * cos, torch.roll(x, half, dims=-1), sin)
