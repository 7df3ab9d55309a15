"""Linears of which there are many, each for its own rows: the products behind experts.

Rows are sorted by group once; then each group is one matrix product, and no token is looked up again. Knows nothing of
routers, gates or tokens.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from danlu.models.multiply import multiply, multiply_packed, pack


@dataclass(frozen=True)
class Groups:
    """How P items were laid out as S rows, group after group. On a CPU groups are rounded up with copies of their last
    item: a kernel is compiled for each new number of rows, so that the fewer there are, the better."""

    sizes: tuple[int, ...]
    """Rows of each group; S in all."""
    owner: Tensor
    """(S,) the group of each row."""
    source: Tensor
    """(S,) the item that stands in each row."""
    place: Tensor
    """(P,) the row of each item; 0 for items of no group."""

    @functools.cached_property
    def filled(self) -> list[tuple[int, slice]]:
        """Groups that have rows, and which."""
        ends = itertools.accumulate(self.sizes)
        return [(g, slice(end - size, end)) for g, (size, end) in enumerate(zip(self.sizes, ends, strict=True)) if size]

    @property
    def ends(self) -> Tensor:
        """(X,) int32: where each group ends."""
        return torch.tensor(self.sizes, device=self.owner.device).cumsum(0, dtype=torch.int32)


def group_items(owner: Tensor, num_groups: int) -> Groups:
    """Sort P items by their group. owner: (P,), ``num_groups`` for items of none. Equal groups keep their order."""
    owners, order = owner.sort(stable=True)
    counts = torch.bincount(owners, minlength=num_groups + 1)[:num_groups]
    sizes = _rounded(counts) if owner.device.type == "cpu" else counts
    shift = (sizes.cumsum(0) - sizes) - (counts.cumsum(0) - counts)  # (X,) rows added before each group
    groups = torch.arange(num_groups, device=owner.device)
    rows_owner = groups.repeat_interleave(sizes)
    sorted_place = torch.arange(rows_owner.shape[0], device=owner.device) - shift[rows_owner]
    source = order[torch.minimum(sorted_place, (counts.cumsum(0) - 1)[rows_owner])]
    place = torch.zeros_like(owner)
    kept = torch.arange(int(counts.sum()), device=owner.device)
    place[order[: kept.shape[0]]] = kept + shift[owners[: kept.shape[0]]]
    return Groups(tuple(sizes.tolist()), rows_owner, source, place)


def _rounded(counts: Tensor) -> Tensor:
    """Up to the next number of four leading bits: exact below 16, at most 1/8 more beyond."""
    _, exponent = torch.frexp(counts.float())
    step = torch.ones_like(counts) << (exponent - 4).clamp_min(0)
    return (counts + step - 1) // step * step


class _Product(torch.autograd.Function):
    """Rows of group g times weight[g]ᵀ. Torch's own gradient of an indexed weight is as large as all weights, for each
    group anew; this one writes every group's gradient once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, groups: Groups) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x, weight)
        ctx.groups = groups
        return torch.cat([multiply(x[rows], weight[group]) for group, rows in groups.filled])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        groups: Groups = ctx.groups
        grad = grad.contiguous()
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.cat([multiply(grad[rows], weight[group].t()) for group, rows in groups.filled])
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight)
            for group, rows in groups.filled:
                grad_weight[group] = multiply(grad[rows].t(), x[rows].t())
        return grad_x, grad_weight, None


def grouped_product(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """x: (S, D), weight: (X, O, D) → (S, O); differentiable in both."""
    if x.device.type == "cuda":
        return nn.functional.grouped_mm(x, weight.transpose(-2, -1), offs=groups.ends)
    return _Product.apply(x, weight, groups)  # pyright: ignore[reportReturnType]


class GroupedLinear(nn.Module):
    """y = x W[g]ᵀ + b[g] for rows x of group g. ``parts`` are the rows of each projection fused in a group."""

    bias: nn.Parameter | None

    def __init__(self, num_groups: int, width: int, parts: tuple[int, ...], *, bias: bool = False) -> None:
        super().__init__()
        self.parts = parts
        self.weight = nn.Parameter(torch.empty(num_groups, sum(parts), width))
        self.register_parameter("bias", nn.Parameter(torch.empty(num_groups, sum(parts))) if bias else None)
        bound = 1.0 / math.sqrt(width)  # as nn.Linear starts
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """(S, D) → (S, O)."""
        y = grouped_product(x, self.weight, groups)
        return y if self.bias is None else y + self.bias.index_select(0, groups.owner)


class PackedGroupedLinear(nn.Module):
    """A grouped linear for inference only, its weights in the order the kernel reads them (see linear.py)."""

    bias: nn.Parameter | None

    def __init__(self, linear: GroupedLinear) -> None:
        super().__init__()
        self.parts = linear.parts
        self.register_parameter("bias", linear.bias)
        self._packed = [pack(weight) for weight in linear.weight.detach()]

    @property
    def weight(self) -> Tensor:
        """(X, O, D), the plain numbers."""
        return torch.stack([packed.to_dense() for packed in self._packed])

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """(S, D) → (S, O)."""
        assert not (x.requires_grad and torch.is_grad_enabled()), "a packed linear has no gradient"
        y = torch.cat([multiply_packed(x[rows], self._packed[group], None) for group, rows in groups.filled])
        return y if self.bias is None else y + self.bias.index_select(0, groups.owner)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)
