"""Linears: plain ones on the fastest kernel at hand, ones of several projections, and ones packed for inference.

A packed linear keeps its weight in the order the kernel walks through it, so few rows run at the memory's speed. It
cannot be trained; its ``weight`` and its state are the plain numbers again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from danlu.models.multiply import is_faster, multiply, multiply_packed, pack


class Linear(nn.Linear):
    """y = x Wᵀ + b."""

    def forward(self, input: Tensor) -> Tensor:
        """(…, D) → (…, O)."""
        tracked = torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in (input, self.weight, self.bias)
        )
        if not tracked or not is_faster(input, self.weight):
            return fastest_product(input, self.weight, self.bias)
        found: Any = _Product.apply(input.reshape(-1, input.shape[-1]), self.weight, self.bias)
        return found if input.dim() == 2 else found.view(*input.shape[:-1], -1)  # FSDP2 warns of views


def fastest_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b, (…, D) → (…, O), on the kernel that is fastest for the shape. A gradient is kept only where that is
    torch's own."""
    if not is_faster(x, weight):
        return nn.functional.linear(x, weight, bias)
    found = multiply(x.reshape(-1, x.shape[-1]), weight, bias)
    return found if x.dim() == 2 else found.view(*x.shape[:-1], -1)


class FusedLinear(Linear):
    """One product for several projections of the same input; ``parts`` are the rows of each."""

    def __init__(self, width: int, parts: Sequence[int], *, bias: bool = False) -> None:
        super().__init__(width, sum(parts), bias=bias)
        self.parts = tuple(parts)


class _Product(torch.autograd.Function):
    """``multiply`` with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        for_x, for_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        return multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            multiply(gradient, weight.t()) if for_x else None,
            multiply(gradient.t(), x.t()) if for_weight else None,
            gradient.sum(0) if for_bias else None,
        )


class PackedLinear(nn.Module):
    """A linear for inference only."""

    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.parts = rows_of_parts(linear)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_parameter("bias", linear.bias)
        self._packed = pack(linear.weight.detach())

    @property
    def weight(self) -> Tensor:
        """(O, D), the plain numbers."""
        return self._packed.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, O)."""
        assert not (x.requires_grad and torch.is_grad_enabled()), "a packed linear has no gradient"
        y = multiply_packed(x.reshape(-1, x.shape[-1]), self._packed, self.bias)
        return y.view(*x.shape[:-1], self.out_features)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)


def rows_of_parts(linear: nn.Module) -> tuple[int, ...]:
    """Rows of each projection in a linear; a plain one has one part, all its rows."""
    parts: tuple[int, ...] | None = getattr(linear, "parts", None)
    if parts is not None:
        return parts
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return (weight.shape[0],)
