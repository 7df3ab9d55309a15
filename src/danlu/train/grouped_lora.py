"""LoRA on the linears of experts: each expert has matrices of its own. Files and names are in adapter.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from danlu.models.grouped import GroupedLinear, Groups, grouped_product
from danlu.models.quant import Int8GroupedLinear

if TYPE_CHECKING:
    from danlu.train.lora import LoraPart


class LoraGroupedLinear(nn.Module):
    """y = x W[g]ᵀ + scaling (x A[g]ᵀ) B[g]ᵀ for rows x of group g; ``parts`` are alike in every group."""

    def __init__(
        self, base: GroupedLinear | Int8GroupedLinear, parts: Sequence[LoraPart], *, dropout: float = 0.0
    ) -> None:  # fmt: skip
        super().__init__()
        self.base = base
        self.num_groups, _, width = base.weight.shape
        self.dropout = dropout
        self.parts = tuple(parts)
        self.chosen = tuple(part.rank > 0 for part in parts) * self.num_groups  # group by group, as checkpoints do
        self._kept = [part for part in parts if part.rank]
        self._ranks = [part.rank for part in self._kept]
        bound = 1.0 / math.sqrt(width)
        a = torch.empty(self.num_groups, sum(self._ranks), width).uniform_(-bound, bound)
        self.a = nn.Parameter(a.to(base.weight.device))
        self.b = nn.ParameterList(
            nn.Parameter(torch.zeros(self.num_groups, part.rows, part.rank, device=base.weight.device))
            for part in self._kept
        )

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """(S, D) → (S, O)."""
        read = nn.functional.dropout(x, self.dropout, self.training) if self.dropout else x
        low = grouped_product(read, self.a.to(x.dtype), groups).split(self._ranks, dim=-1)  # (S, r) a part
        ups = [
            grouped_product(narrow, b.to(x.dtype), groups) * part.scaling
            for narrow, b, part in zip(low, self.b, self._kept, strict=True)
        ]
        return self.base(x, groups) + self._placed(ups, dim=-1)

    def delta(self) -> Tensor:
        """The change of W this adapter makes, fp32 (X, O, D)."""
        downs = self.a.float().split(self._ranks, dim=1)
        pairs = zip(downs, self.b, self._kept, strict=True)
        return self._placed([b.float() @ a * part.scaling for a, b, part in pairs], dim=1)

    def tensors(self) -> list[Mapping[str, Tensor]]:
        """A (r, D) and B (rows, r) of each projection with an adapter, expert after expert, as PEFT calls them."""
        downs = self.a.split(self._ranks, dim=1)
        return [
            {"lora_A.weight": a[g], "lora_B.weight": b[g]}
            for g in range(self.num_groups)
            for a, b in zip(downs, self.b, strict=True)
        ]

    def _placed(self, parts: Sequence[Tensor], dim: int) -> Tensor:
        """Parts where their projection stands, zeros for projections without an adapter."""
        waiting = iter(parts)
        shape = list(parts[0].shape)
        placed: list[Tensor] = []
        for part in self.parts:
            shape[dim] = part.rows
            placed.append(next(waiting) if part.rank else parts[0].new_zeros(shape))
        return torch.cat(placed, dim=dim)
