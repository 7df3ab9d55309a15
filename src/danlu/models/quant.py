"""8-bit layers for inference: weights int8 with one scale a row, activations int8 with scale and offset a token.

The product is exact integer arithmetic, so an answer does not depend on what else is in the batch. Stored as plain
int8 and fp32 tensors; nothing here depends on a packed format. Knows no family and no file names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(R, C) → int8 (R, C) and fp32 scales (R, 1): symmetric, round to nearest, largest value of a row at ±127."""
    weight = weight.float()
    scale = (weight.abs().amax(dim=1, keepdim=True) / 127.0).clamp_min(1e-12)
    return (weight / scale).round_().clamp_(-127, 127).to(torch.int8), scale


class Int8Linear(nn.Module):
    """y = x Wᵀ with int8 weights (O, D) and scales (O, 1); activations are quantised per token as they come.

    A token's values are spread over all 256 steps between its lowest and its highest (or 0): x ≈ step · q + offset, so
    y = step · scale · (q Wᵀ) + offset · scale · (row sums of W).
    """

    weight: Tensor
    scale: Tensor
    _scale_row: Tensor
    _row_sums: Tensor

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("_scale_row", scale.reshape(1, -1), persistent=False)
        sums = weight.sum(dim=1, dtype=torch.int32).reshape(1, -1) * self._scale_row
        self.register_buffer("_row_sums", sums, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) → (N, O)."""
        low, high = torch.aminmax(x.float(), dim=-1, keepdim=True)  # (N, 1)
        low = low.clamp_max_(0.0)
        step = high.clamp_min_(0.0).sub_(low).mul_(1.0 / 255.0).clamp_min_(1e-12)
        offset = torch.add(low, step, alpha=128.0)
        quantized = torch.round((x - offset) / step).to(torch.int8)  # -128 … 127
        product = torch.ops.aten._int_mm(quantized, self.weight.t())  # (N, O) int32, exact
        return (product * self._scale_row).mul_(step).addcmul_(offset, self._row_sums).to(x.dtype)


class Int8Embedding(nn.Module):
    """A table of int8 rows with one scale a row (V, 1) and one a column (D,); a row is expanded when it is looked up.

    The column scale undoes the smoothing of a tied head, which reads the same int8 rows without it.
    """

    weight: Tensor
    scale: Tensor
    column_scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, column_scale: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("column_scale", column_scale)
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        """(N,) → (N, D)."""
        return (self.weight[ids] * self.scale[ids] * self.column_scale).to(self.dtype)
