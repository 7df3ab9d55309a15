"""Normalisation layers. Statistics are taken in fp32 whatever the input type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """Which norm a stack uses."""

    kind: Literal["rms", "layer"] = "rms"
    """Root mean square (Zhang & Sennrich 2019) or LayerNorm (Ba et al. 2016)."""
    epsilon: float = 1e-5
    """Added inside the root."""
    bias: bool = False
    """Whether a LayerNorm also shifts."""
    unit_offset: bool = False
    """Whether the factor is 1 + weight (Gemma), so that weights near 0 keep their digits in bf16."""

    def make(self, width: int) -> nn.Module:
        """A norm over ``width`` channels."""
        if self.kind == "rms":
            return RMSNorm(width, self.epsilon, unit_offset=self.unit_offset)
        return nn.LayerNorm(width, eps=self.epsilon, bias=self.bias)


_FEW = 1 << 14
"""Numbers up to which torch's own bf16 norm, which is one call, is faster; its digits are the same."""


_AT_ONCE = 1 << 18
"""Numbers of a gradient taken at once, so that what lies between stays in the cache: up to six times as fast."""


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, epsilon: float, *, unit_offset: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width) if unit_offset else torch.ones(width))
        self.epsilon = epsilon
        self.unit_offset = unit_offset

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        factor = 1.0 + self.weight.float() if self.unit_offset else self.weight
        if x.device.type == "cpu" and x.dtype != torch.float32:
            if torch.is_grad_enabled() and (x.requires_grad or factor.requires_grad):
                return _HalfRMSNorm.apply(x, factor, self.epsilon)  # pyright: ignore[reportReturnType]
            if self.unit_offset or x.numel() > _FEW:
                return _half_rms_norm(x, factor, self.epsilon)[0]
        if self.unit_offset:  # 1 + weight in bf16 would lose the digits that the offset is there to keep
            return nn.functional.rms_norm(x.float(), self.weight.shape, factor, self.epsilon).to(x.dtype)
        return nn.functional.rms_norm(x, self.weight.shape, factor.to(x.dtype), self.epsilon)


def _half_rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The norm of bf16 on a CPU, and one over its root mean square (…, 1): in whole passes over fp32, rounded once.

    torch's own mixes number types in one product, which costs several times as much, backward above all.
    """
    wide = x.float()
    mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    inverse = mean_square.add_(epsilon).rsqrt_()
    return wide.mul_(inverse).mul_(weight.float()).to(x.dtype), inverse


class _HalfRMSNorm(torch.autograd.Function):
    """``_half_rms_norm`` with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        y, inverse = _half_rms_norm(x, weight, epsilon)
        ctx.save_for_backward(x, weight, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        rows, gradient = x.flatten(0, -2), gradients[0].flatten(0, -2)  # (N, D)
        scales, factor = inverse.flatten(0, -2), weight.float()
        for_x = torch.empty_like(rows)
        for_weight = torch.zeros_like(factor) if ctx.needs_input_grad[1] else None
        num_rows = max(1, _AT_ONCE // rows.shape[-1])
        for start in range(0, rows.shape[0], num_rows):
            some = slice(start, start + num_rows)
            normed, slope = rows[some].float().mul_(scales[some]), gradient[some].float()
            product = slope * normed
            if for_weight is not None:
                for_weight += product.sum(0)
            along = torch.mv(product, factor).unsqueeze(1).div_(rows.shape[-1])
            for_x[some] = slope.mul_(factor).sub_(normed.mul_(along)).mul_(scales[some])
        return for_x.view_as(x), None if for_weight is None else for_weight.to(weight.dtype), None
