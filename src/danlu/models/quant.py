"""8-bit layers: weights int8 with one scale a row, activations int8 with scale and offset a token.

The product is exact integer arithmetic, so an answer does not depend on what else is in the batch. Stored as plain
int8 and fp32 tensors; nothing here depends on a packed format. The weights never train; the gradient of what goes in is
that of the plain product, so that adapters on these layers, and everything before them, can be trained (QLoRA, Dettmers
et al. 2023, with int8 in place of 4 bits). Knows no family and no file names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from danlu.models.grouped import GroupedLinear, Groups
from danlu.models.inputs.tokens import TokenEmbedding
from danlu.models.linear import rows_of_parts
from danlu.models.pages import empty_pages

_ROWS = 256
"""Rows that are quantised, and columns that are expanded, at a time: no second copy of a large matrix ever stands in
memory."""


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(…, R, C) → int8 (…, R, C) and fp32 scales (…, R, 1): symmetric, round to nearest, a row's largest at ±127."""
    rows = weight.reshape(-1, weight.shape[-1])
    quantized = empty_pages(rows.shape, torch.int8).to(weight.device)
    scale = torch.empty(rows.shape[0], 1, device=weight.device)
    room, spare = (torch.empty(min(_ROWS, rows.shape[0]), rows.shape[1], device=weight.device) for _ in range(2))
    for part, target, step in zip(rows.split(_ROWS), quantized.split(_ROWS), scale.split(_ROWS), strict=True):
        work = room[: part.shape[0]].copy_(part)
        largest = torch.abs(work, out=spare[: part.shape[0]])
        torch.amax(largest, dim=-1, keepdim=True, out=step)  # twenty times as fast as the norm that is the same
        step.div_(127.0).clamp_min_(1e-12)
        target.copy_(work.div_(step).round_().clamp_(-127, 127))
    return quantized.view(weight.shape), scale.view(*weight.shape[:-1], 1)


def _row_sums(weight: Tensor) -> Tensor:
    """int8 (…, R, C) → int32 (…, R); some rows at a time, for torch makes an int32 copy of what it adds up."""
    rows = weight.reshape(-1, weight.shape[-1])
    return torch.cat([part.sum(dim=1, dtype=torch.int32) for part in rows.split(_ROWS)]).view(weight.shape[:-1])


def can_quantize(layer: nn.Module) -> bool:
    """Whether ``int8_layer`` knows this kind of layer."""
    return isinstance(layer, (nn.Linear, GroupedLinear, TokenEmbedding))


def int8_layer(
    layer: nn.Module, weight: Tensor, scale: Tensor, dtype: torch.dtype, columns: Tensor | None = None
) -> nn.Module:  # fmt: skip
    """The 8-bit layer in place of a plain one. ``columns`` (D,) undoes the smoothing of an embedding."""
    if isinstance(layer, TokenEmbedding):
        return Int8Embedding(weight, scale, torch.ones(weight.shape[1]) if columns is None else columns, dtype)
    if isinstance(layer, GroupedLinear):
        return Int8GroupedLinear(weight, scale, layer.bias, layer.parts)
    assert isinstance(layer, nn.Linear)
    return Int8Linear(weight, scale, layer.bias, rows_of_parts(layer))


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, D) → int8 (N, D), steps and offsets (N, 1): x ≈ step · q + offset, from a token's lowest to its highest."""
    wide = x.float()  # products of mixed number types are slow
    low, high = torch.aminmax(wide, dim=-1, keepdim=True)  # (N, 1)
    low = low.clamp_max_(0.0)
    step = high.clamp_min_(0.0).sub_(low).mul_(1.0 / 255.0).clamp_min_(1e-12)
    offset = torch.add(low, step, alpha=128.0)
    return (wide - offset).div_(step).round_().to(torch.int8), step, offset  # -128 … 127


class Int8Linear(nn.Module):
    """y = x Wᵀ + b with int8 weights (O, D) and scales (O, 1); activations are quantised per token as they come.

    A token's values are spread over all 256 steps between its lowest and its highest (or 0): x ≈ step · q + offset, so
    y = step · scale · (q Wᵀ) + offset · scale · (row sums of W).
    """

    weight: Tensor
    scale: Tensor
    _scale_row: Tensor
    _row_sums: Tensor

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bias: nn.Parameter | None = None,
        parts: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.parts = parts or (weight.shape[0],)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_parameter("bias", bias)
        self.register_buffer("_scale_row", scale.reshape(1, -1), persistent=False)
        sums = _row_sums(weight).reshape(1, -1) * self._scale_row
        self.register_buffer("_row_sums", sums, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) → (N, O)."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _Product.apply(x, self)  # pyright: ignore[reportReturnType]
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """What ``forward`` gives, untracked."""
        quantized, step, offset = quantize_tokens(x)
        product = torch.ops.aten._int_mm(quantized, self.weight.t())  # (N, O) int32, exact
        y = (product * self._scale_row).mul_(step).addcmul_(offset, self._row_sums)
        return (y if self.bias is None else y.add_(self.bias)).to(x.dtype)

    def plain_rows(self, start: int, end: int) -> Tensor:
        """Some rows of the weight that the numbers stand for: fp32 (end − start, D)."""
        return self.weight[start:end] * self.scale[start:end]


class _Product(torch.autograd.Function):
    """``Int8Linear.product`` with the gradient of x Wᵀ in x, as if x had not been rounded (straight through)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Int8Linear) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _times_plain(grad, ctx.layer.weight, ctx.layer.scale), None


def _times_plain(grad: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """grad: (N, O), int8 weight: (O, D), scale: (O, 1) → grad · (scale · weight): (N, D), some columns at a time.

    Whole numbers up to 127 are exact in every number type, so the weight loses nothing.
    """
    scaled = (grad * scale.t()).to(grad.dtype)
    return torch.cat([scaled @ part.to(grad.dtype) for part in weight.split(_ROWS, dim=1)], dim=1)


class Int8GroupedLinear(nn.Module):
    """A GroupedLinear with int8 weights (X, O, D) and scales (X, O, 1); see ``Int8Linear`` for the arithmetic."""

    weight: Tensor
    scale: Tensor
    bias: nn.Parameter | None
    _row_sums: Tensor

    def __init__(
        self, weight: Tensor, scale: Tensor, bias: nn.Parameter | None, parts: tuple[int, ...]
    ) -> None:  # fmt: skip
        super().__init__()
        self.parts = parts
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_parameter("bias", bias)
        sums = _row_sums(weight) * scale.squeeze(2)  # (X, O)
        self.register_buffer("_row_sums", sums, persistent=False)

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """(S, D) → (S, O)."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _GroupedProduct.apply(x, self, groups)  # pyright: ignore[reportReturnType]
        return self.product(x, groups)

    def product(self, x: Tensor, groups: Groups) -> Tensor:
        """What ``forward`` gives, untracked."""
        tokens, step, offset = quantize_tokens(x)
        y: list[Tensor] = []
        for group, rows in groups.filled:
            product = torch.ops.aten._int_mm(tokens[rows], self.weight[group].t()) * self.scale[group].t()
            y.append(product.mul_(step[rows]).addcmul_(offset[rows], self._row_sums[group]))
        whole = torch.cat(y)
        return (whole if self.bias is None else whole + self.bias.index_select(0, groups.owner)).to(x.dtype)


class _GroupedProduct(torch.autograd.Function):
    """``Int8GroupedLinear.product`` with its gradient in x; see ``_Product``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Int8GroupedLinear, groups: Groups) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.layer, ctx.groups = layer, groups
        return layer.product(x, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        layer, groups = ctx.layer, ctx.groups
        parts = [_times_plain(grad[rows], layer.weight[g], layer.scale[g]) for g, rows in groups.filled]
        return torch.cat(parts), None, None


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
