"""LoRA on the linears of experts: each expert has matrices of its own. Files and names are in lora.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from danlu.models.grouped import GroupedLinear, Groups, grouped_product

if TYPE_CHECKING:
    from danlu.train.lora import LoraConfig


class LoraGroupedLinear(nn.Module):
    """y = x W[g]ᵀ + (alpha / rank) (x A[g]ᵀ) B[g]ᵀ for rows x of group g; ``chosen`` as in ``LoraLinear``."""

    def __init__(self, base: GroupedLinear, chosen: Sequence[bool], config: LoraConfig) -> None:
        super().__init__()
        self.base = base
        self.rank = config.rank
        self.scaling = config.alpha / config.rank
        self.num_groups, _, width = base.weight.shape
        self._parts = tuple(chosen)
        self.chosen = self._parts * self.num_groups  # of each group in turn, as checkpoints name them
        self.a = nn.Parameter(torch.empty(self.num_groups, sum(chosen) * config.rank, width))
        kept = [rows for rows, is_chosen in zip(base.parts, chosen, strict=True) if is_chosen]
        self.b = nn.ParameterList(nn.Parameter(torch.zeros(self.num_groups, rows, config.rank)) for rows in kept)
        bound = 1.0 / math.sqrt(width)
        nn.init.uniform_(self.a, -bound, bound)

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """(S, D) → (S, O)."""
        low = grouped_product(x, self.a.to(x.dtype), groups).split(self.rank, dim=-1)  # (S, r) a part
        ups = [grouped_product(part, b.to(x.dtype), groups) for part, b in zip(low, self.b, strict=True)]
        return self.base(x, groups) + self._placed(ups, dim=-1) * self.scaling

    def delta(self) -> Tensor:
        """The change of W this adapter makes, fp32 (X, O, D)."""
        downs = self.a.float().split(self.rank, dim=1)
        return self._placed([b.float() @ a for a, b in zip(downs, self.b, strict=True)], dim=1) * self.scaling

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """A (r, D) and B (rows, r) of each projection with an adapter, expert after expert."""
        downs = self.a.split(self.rank, dim=1)
        return [(a[g], b[g]) for g in range(self.num_groups) for a, b in zip(downs, self.b, strict=True)]

    def _placed(self, parts: Sequence[Tensor], dim: int) -> Tensor:
        """Parts where their projection stands, zeros for projections without an adapter."""
        waiting = iter(parts)
        shape = list(parts[0].shape)
        placed: list[Tensor] = []
        for rows, is_chosen in zip(self.base.parts, self._parts, strict=True):
            shape[dim] = rows
            placed.append(next(waiting) if is_chosen else parts[0].new_zeros(shape))
        return torch.cat(placed, dim=dim)
