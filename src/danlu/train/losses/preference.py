"""Losses of answers that people compared: DPO, IPO, KTO, ORPO, SimPO, and reward models.

They read one number an answer: a log-probability, or a log-ratio (policy's minus reference's). Each returns a sum over
pairs (KTO: answers) to divide by their number. A method without a reference gets plain log-probabilities, a
length-normalised one gets means over tokens (``row_means``) instead of sums.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Log-ratios (P,) of pairs → scalar sum (Rafailov et al. 2023, eq. 7).

    ``label_smoothing`` is the share of pairs believed to be labelled the wrong way round (conservative DPO, Mitchell
    2023).
    """
    margin = beta * (chosen - rejected)
    return -((1 - label_smoothing) * logsigmoid(margin) + label_smoothing * logsigmoid(-margin)).sum()


def ipo_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Log-ratios a token (P,) → scalar sum (Azar et al. 2023, eq. 17, with beta as their tau).

    The paper writes sums over tokens; means make one beta fit answers of any length, as its authors did too.
    """
    return (chosen - rejected - 1 / (2 * beta)).square().sum()


def kto_loss(
    ratios: Tensor,
    is_desirable: Tensor,
    baseline: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Log-ratios (B,) of answers that were liked or not (B,) bool → scalar sum (Ethayarajh et al. 2024, eq. 7).

    ``baseline`` is from ``kto_baseline``, one number for all micro-batches of a step.
    """
    sign = is_desirable.to(ratios.dtype) * 2 - 1
    weights = is_desirable.to(ratios.dtype) * (desirable_weight - undesirable_weight) + undesirable_weight
    return (weights * (1 - torch.sigmoid(beta * sign * (ratios - baseline.detach())))).sum()


def kto_baseline(ratio_sum: Tensor, count: float) -> Tensor:
    """Mean log-ratio of answers to other rows' prompts, not below 0: how far the policy is from its reference.

    ``ratio_sum`` is over the ``count`` answers of a whole step. A scalar without gradient.
    """
    return (ratio_sum.detach() / max(count, 1.0)).clamp(min=0)


def odds_ratio_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Log-probabilities a token (P,), all below 0 → scalar sum (Hong et al. 2024, ORPO, eq. 7), without its factor."""
    return -logsigmoid(_log_odds(chosen) - _log_odds(rejected)).sum()


def orpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Log-probabilities a token (P,) → scalar sum: the chosen answer's own loss and the odds ratio (ORPO, eq. 6).

    The first is a mean over the tokens of each answer, then a sum over pairs; the prompt is not learnt.
    """
    return nll_loss(chosen) + beta * odds_ratio_loss(chosen, rejected)


def nll_loss(chosen: Tensor) -> Tensor:
    """Log-probabilities a token (P,) → scalar sum: keeps the chosen answer likely (RPO, Pang et al. 2024, eq. 2)."""
    return -chosen.sum()


def simpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, margin: float) -> Tensor:
    """Log-probabilities a token (P,) → scalar sum (Meng et al. 2024, eq. 6, ``margin`` is their gamma)."""
    return -logsigmoid(beta * (chosen - rejected) - margin).sum()


def reward_loss(chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None, centring: float = 0.0) -> Tensor:
    """Rewards (P,) of pairs → scalar sum: Bradley-Terry.

    ``margin`` (P,) is how much better the chosen one is at least (Touvron et al. 2023, Llama 2, eq. 2); ``centring``
    weighs (chosen + rejected)², which keeps rewards around 0 (Eisenstein et al. 2023, eq. 3).
    """
    difference = chosen - rejected if margin is None else chosen - rejected - margin
    return -logsigmoid(difference).sum() + centring * (chosen + rejected).square().sum()


@torch.no_grad()
def preference_parts(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """Rewards (P,) of pairs → sums over pairs, for the curve; equal rewards count as wrong."""
    return {
        "rewards/chosen": chosen.sum(),
        "rewards/rejected": rejected.sum(),
        "rewards/margin": (chosen - rejected).sum(),
        "rewards/accuracy": (chosen > rejected).to(chosen.dtype).sum(),
    }


def _log_odds(logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p < 0, exact near both ends (Mächler 2012)."""
    is_near_one = logprobs > -0.6931471805599453
    near_one = torch.where(is_near_one, logprobs, -1.0)  # the branch not taken must have a finite slope too
    far_from_one = torch.where(is_near_one, -1.0, logprobs)
    rest = torch.where(is_near_one, torch.log(-torch.expm1(near_one)), torch.log1p(-torch.exp(far_from_one)))
    return logprobs - rest
