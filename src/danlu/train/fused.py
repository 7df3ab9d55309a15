"""AdamW and SGD on torch's fused kernels: on a CPU 2.3 times as fast as its default, where foreach is slower.

Weight decay is decoupled in both (Loshchilov & Hutter 2019). Of sharded parameters each process moves its
rows. Knows no names and no groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from danlu.train.sharded import mine


def adamw_state(parameter: Tensor) -> dict[str, Tensor]:
    """What AdamW remembers of a parameter: 8 bytes a value."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


def adamw_step(
    parameters: Sequence[Tensor],
    states: Sequence[dict[str, Tensor]],
    *,
    rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
) -> None:
    """One step of AdamW, algorithm 2 of the paper with the decay multiplied by the rate."""
    adamw(
        [mine(parameter) for parameter in parameters],
        _gradients(parameters),
        [mine(state["exp_avg"]) for state in states],
        [mine(state["exp_avg_sq"]) for state in states],
        [],
        [state["step"] for state in states],
        fused=True,
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=rate,
        weight_decay=weight_decay,
        eps=epsilon,
        maximize=False,
    )


def sgd_state(parameter: Tensor, momentum: float) -> dict[str, Tensor]:
    """What SGD remembers of a parameter: 4 bytes a value, nothing without momentum."""
    return {"momentum_buffer": torch.zeros_like(parameter)} if momentum else {}


def sgd_step(
    parameters: Sequence[Tensor],
    states: Sequence[dict[str, Tensor]],
    *,
    rate: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
) -> None:
    """One step of SGDW: w ← (1 - rate · decay) w, b ← momentum · b + g, w ← w - rate · b (or g + momentum · b)."""
    if weight_decay:
        for parameter in parameters:
            parameter.mul_(1.0 - rate * weight_decay)
    sgd(
        [mine(parameter) for parameter in parameters],
        _gradients(parameters),
        [mine(state["momentum_buffer"]) if momentum else None for state in states],
        fused=True,
        weight_decay=0.0,
        momentum=momentum,
        lr=rate,
        dampening=0.0,
        nesterov=nesterov and momentum > 0.0,
        maximize=False,
    )


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [mine(parameter.grad) for parameter in parameters if parameter.grad is not None]
