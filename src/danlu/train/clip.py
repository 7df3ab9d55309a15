"""Gradient clipping by the global norm. Knows no parameters and no step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from danlu.train.sharded import is_sharded, whole


@torch.no_grad()
def clip_by_norm(gradients: Mapping[str, Tensor], max_norm: float | None) -> float:
    """Scale gradients in place so that their global norm is at most ``max_norm``; returns the norm before.

    None only measures. A norm that is not finite leaves every gradient as it is: skip the step. Gradients are fp32
    and already summed over processes; DTensors are measured whole, so that every process gets one answer.
    """
    plain = [gradient for gradient in gradients.values() if not is_sharded(gradient)]
    sharded = [gradient for gradient in gradients.values() if is_sharded(gradient)]
    norm = math.hypot(*(float(whole(nn.utils.get_total_norm(some))) for some in (plain, sharded) if some))
    if max_norm is None or not math.isfinite(norm) or norm <= max_norm:
        return norm
    for gradient in gradients.values():
        gradient.mul_(max_norm / norm)
    return norm
