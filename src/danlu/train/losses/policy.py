"""Losses of answers that were tried and rewarded: policy gradients with groups of answers to one prompt.

Tokens of all answers lie end to end (M,), ``counts`` of them an answer. A loss comes with what to divide its sum by,
since variants of GRPO differ in just that. Knows no prompts, no rewards' origin and no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from danlu.core.errors import ConfigError
from danlu.train.losses.tokens import of_rows, row_means

LossType = Literal["grpo", "dapo", "dr_grpo"]
"""What is averaged: the mean of each answer, over answers (Shao et al. 2024, eq. 3); all tokens alike (Yu et al. 2025,
DAPO, eq. 8); all tokens alike, over a constant number an answer (Liu et al. 2025, Dr. GRPO)."""
Baseline = Literal["group", "leave_one_out", "batch"]
"""What a reward is compared with: the mean of all answers to the prompt, of the others (RLOO, Ahmadian et al. 2024), of
all answers to all prompts (REINFORCE)."""
Scale = Literal["group", "batch", "none"]
"""What advantages are divided by: the spread of the prompt's rewards, of all rewards, or nothing (Dr. GRPO)."""

_SPREAD_FLOOR = 1e-4


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """How a rewarded answer moves the policy."""

    loss_type: LossType = "dapo"
    """What is averaged: grpo (answers), dapo (tokens), dr_grpo (tokens over a constant)."""
    clip_low: float = 0.2
    """The probability ratio counts no further below 1 than this."""
    clip_high: float = 0.2
    """The probability ratio counts no further above 1 than this; DAPO takes 0.28."""
    is_sequence_ratio: bool = False
    """One ratio an answer, the geometric mean over its tokens (GSPO, Zheng et al. 2025)."""
    kl_weight: float = 0.0
    """Weight of the divergence from the reference; 0 needs no reference."""

    def __post_init__(self) -> None:
        for name in ("clip_low", "clip_high"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Use a positive number such as 0.2.")
        if self.clip_low >= 1:
            raise ConfigError(f"clip_low is {self.clip_low}.", "Use less than 1.")
        if self.kl_weight < 0:
            raise ConfigError(f"kl_weight is {self.kl_weight}.", "Use 0 or more.")


@dataclass(frozen=True)
class PolicyLoss:
    """A sum, what to divide it by, and sums to be divided by the same."""

    total: Tensor
    count: int
    parts: dict[str, Tensor]


def advantages(rewards: Tensor, *, baseline: Baseline = "group", scale: Scale = "group") -> Tensor:
    """Rewards of answers to prompts (P, G) → how much better than expected each was (P, G).

    A reward that is no number was not given: its advantage is 0, and it counts in no mean. Spreads are the sample's
    (n - 1), floored at 1e-4, as in the papers' code; a group whose rewards are equal teaches nothing.
    """
    is_given = ~rewards.isnan()
    number = is_given.sum(dim=1, keepdim=True)
    known = rewards.nan_to_num(0.0)
    if baseline == "batch":
        expected = known.sum() / is_given.sum().clamp(min=1)
    elif baseline == "group":
        expected = known.sum(dim=1, keepdim=True) / number.clamp(min=1)
    else:
        others = (known.sum(dim=1, keepdim=True) - known) / (number - 1).clamp(min=1)
        expected = torch.where(number > 1, others, known)
    found = known - expected
    if scale != "none":
        dims = (1,) if scale == "group" else (0, 1)
        found = found / (_spread(known, is_given, dims) + _SPREAD_FLOOR)
    return torch.where(is_given, found, 0.0)


def _spread(known: Tensor, is_given: Tensor, dims: tuple[int, ...]) -> Tensor:
    number = is_given.sum(dim=dims, keepdim=True)
    mean = known.sum(dim=dims, keepdim=True) / number.clamp(min=1)
    squares = torch.where(is_given, known - mean, 0.0).square().sum(dim=dims, keepdim=True)
    return (squares / (number - 1).clamp(min=1)).sqrt()


def kl_estimate(logprobs: Tensor, reference: Tensor) -> Tensor:
    """KL(policy ‖ reference) at tokens the policy drew (M,): unbiased and never below 0 (Schulman 2020, k3)."""
    difference = reference - logprobs
    return torch.exp(difference) - difference - 1


def policy_loss(
    logprobs: Tensor,
    counts: Sequence[int],
    advantages: Tensor,
    config: PolicyConfig,
    *,
    old: Tensor | None = None,
    reference: Tensor | None = None,
    longest: int | None = None,
) -> PolicyLoss:
    """Clipped policy gradient with a divergence term.

    ``logprobs`` (M,) are the policy's, ``advantages`` (B,) the answers'. ``old`` (M,) are from when the answers were
    written; None when the policy has not moved since. ``reference`` (M,) is needed with ``kl_weight``, ``longest``
    (most tokens an answer may have) with dr_grpo.
    """
    assert longest is not None or config.loss_type != "dr_grpo", "dr_grpo needs longest"
    gain = of_rows(advantages, counts)  # (M,)
    steps = logprobs - (logprobs.detach() if old is None else old)
    if config.is_sequence_ratio:
        steps = of_rows(row_means(steps, counts), counts)
    ratio = steps.exp()
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    losses = -torch.minimum(ratio * gain, clipped * gain)
    with torch.no_grad():
        is_clipped = ((ratio < 1 - config.clip_low) & (gain < 0)) | ((ratio > 1 + config.clip_high) & (gain > 0))
    parts = {"clipped": is_clipped.to(losses.dtype)}
    if config.kl_weight:
        assert reference is not None, "kl_weight needs the reference's log-probabilities"
        divergence = kl_estimate(logprobs, reference)
        losses = losses + config.kl_weight * divergence
        parts["kl"] = divergence.detach()
    count = num_counted(counts, config)
    return PolicyLoss(
        reduce(losses, counts, config, longest=longest), count, {n: reduce(v, counts, config) for n, v in parts.items()}
    )


def num_counted(counts: Sequence[int], config: PolicyConfig) -> int:
    """What sums over answers of these lengths are divided by: tokens or answers."""
    return sum(counts) if config.loss_type == "dapo" else len(counts)


def reduce(values: Tensor, counts: Sequence[int], config: PolicyConfig, *, longest: int | None = None) -> Tensor:
    """Values of tokens (M,) → a scalar sum to divide by ``num_counted``: the mean that the loss type means.

    For dr_grpo with ``longest``; without it (numbers for the curve) each answer has its own mean.
    """
    if config.loss_type == "dapo":
        return values.sum()
    if config.loss_type == "dr_grpo" and longest is not None:
        return values.sum() / longest
    return row_means(values, counts).sum()


def reinforce_loss(logprobs: Tensor, counts: Sequence[int], advantages: Tensor) -> Tensor:
    """Log-probabilities (M,), advantages (B,) → scalar sum over answers (Williams 1992): no ratio, no clipping."""
    return -(of_rows(advantages, counts) * logprobs).sum()
