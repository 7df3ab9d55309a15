"""Cross-entropy of a plain linear head that trains, without all logits at once and without computing any twice.

Rows are done in chunks that stay in the cache: logits, their softmax and both gradients are taken in one pass, in the
forward call; the head's gradient is added up in fp32 and rounded once. On a CPU it beats the plain product, and torch's
own linear_cross_entropy by more. Knows no rows, and no labels that are left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from danlu.models.heads.lm import LMHead
from danlu.models.linear import Linear
from danlu.models.multiply import multiply
from danlu.models.network import Network

_CPU_ROWS = (256, 512)
"""Fewest and most rows at a time on a CPU: few, so that their logits are read again while they are in the cache; many,
so that the head's gradient is added up less often."""
_CPU_NUMBERS = 2**22
"""Logits at a time on a CPU, within those bounds."""
_CHUNK_NUMBERS = 2**26
"""Logits at a time elsewhere."""


def head_loss(network: Network, hidden: Tensor, targets: Tensor, *, z_weight: float = 0.0) -> tuple[Tensor, Tensor]:
    """Summed loss in nats of ``targets`` (M,) at hidden states (M, D), and the part of it that is z-loss.

    The z-loss is z_weight · log² Z, Z the sum of exponentiated logits (Chowdhery et al. 2022, section 5); it keeps
    logits from drifting. Only the first result has a gradient.
    """
    head = network.head
    if isinstance(head, LMHead) and type(head.linear) is Linear and head.config.softcap is None:
        if head.transform is not None:
            hidden = head.transform(hidden)
        if head.config.scale != 1.0:
            hidden = hidden * head.config.scale
        return linear_cross_entropy(hidden, head.linear.weight, targets, head.linear.bias, z_weight=z_weight)
    logits = network.logits(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # (M, V)
    total = nn.functional.cross_entropy(logits, targets, reduction="sum")
    if not z_weight:
        return total, total.new_zeros(())
    z = z_weight * torch.logsumexp(logits, dim=-1).square().sum()
    return total + z, z.detach()


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    z_weight: float = 0.0,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """``head_loss`` of logits = hidden (M, D) · weight (V, D)ᵀ + bias (V,): two scalars in fp32 or wider."""
    if chunk_rows is None:
        few, many = _CPU_ROWS
        if hidden.device.type == "cpu":
            chunk_rows = min(max(few, _CPU_NUMBERS // weight.shape[0]), many)
        else:
            chunk_rows = max(few, _CHUNK_NUMBERS // weight.shape[0])
    takes_slopes = torch.is_grad_enabled()
    return _LinearCrossEntropy.apply(hidden, weight, bias, targets, z_weight, chunk_rows, takes_slopes)  # pyright: ignore


def _softmax(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities in the type of ``logits`` (m, V), and -log p of ``target`` (m,) in fp32 or wider, (m,).

    Of half-width logits p is a rounded number, off by 0.002 of itself at most, up or down alike; a pass over all logits
    in fp32 would take as long as their product. A p below the smallest number counts as that: 87 nats.
    """
    rows = torch.arange(len(target), device=target.device)
    if logits.dtype in (torch.float32, torch.float64):
        logprobs = torch.log_softmax(logits, dim=-1)
        losses = -logprobs[rows, target]
        return logprobs.exp_(), losses
    probabilities = torch.softmax(logits, dim=-1)
    return probabilities, -probabilities[rows, target].float().clamp_min(torch.finfo(torch.float32).tiny).log()


def _of_weight(slope: Tensor, hidden: Tensor) -> Tensor:
    """slope (m, V), hidden (m, D) → slopeᵀ · hidden (V, D); ``multiply`` would lay half-width slopes out anew."""
    if slope.dtype == torch.float32:
        return multiply(slope.t(), hidden.t())
    return torch.mm(slope.t(), hidden)


class _LinearCrossEntropy(torch.autograd.Function):
    """First derivatives only, taken while the logits are there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        z_weight: float,
        chunk_rows: int,
        takes_slopes: bool,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        for_hidden, for_weight, for_bias = (takes_slopes and needed for needed in ctx.needs_input_grad[:3])
        total, z_total = hidden.new_zeros((), dtype=wide), hidden.new_zeros((), dtype=wide)
        slopes = torch.empty_like(hidden) if for_hidden else None
        of_weight = torch.zeros_like(weight, dtype=wide) if for_weight else None
        of_bias = torch.zeros_like(weight[:, 0], dtype=wide) if for_bias else None
        for start in range(0, hidden.shape[0], chunk_rows):
            some = hidden[start : start + chunk_rows]
            target = targets[start : start + chunk_rows]  # (m,)
            told = torch.arange(len(target), device=target.device), target
            logits = multiply(some, weight, bias)  # (m, V)
            slope, losses = _softmax(logits, target)  # (m, V), (m,)
            total += losses.sum()
            if z_weight:
                z = losses + logits[told]  # log Z
                z_total += z_weight * z.square().sum()
                slope *= (1.0 + 2.0 * z_weight * z).unsqueeze(1)
            if not (for_hidden or for_weight or for_bias):
                continue
            slope[told] -= 1.0  # scatter_add_ would copy it all
            if of_bias is not None:
                of_bias += slope.sum(0, dtype=wide)
            if slopes is not None:
                slopes[start : start + chunk_rows] = multiply(slope, weight.t())
            if of_weight is not None:
                of_weight += _of_weight(slope, some)
        kept = [None if part is None else part.to(weight.dtype) for part in (of_weight, of_bias)]
        ctx.save_for_backward(slopes, *kept)
        ctx.mark_non_differentiable(z_total)
        return total + z_total, z_total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        factor = gradients[0]
        found = [None if part is None else part * factor.to(part.dtype) for part in ctx.saved_tensors]
        return *found, None, None, None, None
