"""DoRA (Liu et al. 2024): a weight is a length a row times a direction; LoRA turns the direction, a vector learns the
lengths. Here is what the lengths are, found without making the changed weight. Knows no adapter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from danlu.models.quant import Int8Linear

_ROWS = 512
"""Rows of the weight that stand in fp32 at a time."""


def plain_rows(base: nn.Module, start: int, end: int) -> Tensor:
    """Rows of a plain or 8-bit linear's weight: fp32 (end − start, D)."""
    if isinstance(base, Int8Linear):
        return base.plain_rows(start, end)
    weight = base.weight
    assert isinstance(weight, Tensor)
    return weight[start:end].detach().float()


@torch.no_grad()
def row_squares(base: nn.Module, start: int, end: int) -> Tensor:
    """Squared length of each of these rows: fp32 (end − start,)."""
    parts = range(start, end, _ROWS)
    return torch.cat([plain_rows(base, at, min(at + _ROWS, end)).square().sum(dim=1) for at in parts])


@torch.no_grad()
def changed_lengths(base: nn.Module, start: int, squares: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Lengths of the rows of W + scaling · B A: (rows,), from their squares in W, A (r, D) and B (rows, r).

    |w + s b A|² = |w|² + 2 s b · (A w) + s² b (A Aᵀ) bᵀ: products of thin matrices, no copy of the weight.
    Deviation: none in value; the length counts as a constant for the gradient, as the paper's section 4.3 proposes.
    """
    end = start + squares.shape[0]
    low = torch.cat(
        [plain_rows(base, at, min(at + _ROWS, end)) @ a.t() for at in range(start, end, _ROWS)]
    )  # (rows, r)
    moved = squares + 2.0 * scaling * (b * low).sum(dim=1) + scaling**2 * ((b @ (a @ a.t())) * b).sum(dim=1)
    return moved.clamp_min(1e-24).sqrt()
