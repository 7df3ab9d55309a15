"""Losses of next items: a softmax over all of them, or over a sample when there are too many. Knows no network."""

from __future__ import annotations

import torch
from torch import Tensor


def sampled_softmax(own: Tensor, sampled: Tensor, log_expected: Tensor, is_own: Tensor) -> Tensor:
    """Scores of the right items (M,) and of S sampled ones (M, S) → scalar sum of losses in nats, to divide by M.

    The sum over all items in a softmax is estimated by the right item's own term and by the sampled ones, each divided
    by how often it was to be expected among S draws: score - log(S · q), ``log_expected`` (S,) (Bengio & Senécal 2008;
    Yi et al. 2019, section 3). ``is_own`` (M, S) marks samples that are the right item, which counts once: so the
    estimate of the sum has no bias, and drawing every item once gives the full softmax.
    """
    wide = torch.promote_types(own.dtype, torch.float32)
    others = (sampled.to(wide) - log_expected).masked_fill(is_own, -torch.inf)
    everything = torch.cat([own.to(wide).unsqueeze(1), others], dim=1)  # (M, 1 + S)
    return (torch.logsumexp(everything, dim=1) - own.to(wide)).sum()


def draw_items(chances: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``count`` draws with replacement from chances (V,) → ids (S,) and the log of their expected counts (S,)."""
    ids = torch.multinomial(chances, count, replacement=True)
    return ids, torch.log(chances[ids] * count)
