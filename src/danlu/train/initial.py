"""Weights of a network that has learnt nothing yet. Knows layers, no family.

Linears and tables are drawn from N(0, spread), shifts are 0, norms do nothing. What adds to a residual stream that
nothing norms is drawn narrower the more such layers there are (Radford et al. 2019, section 2.3), or starts at 0.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import nn

from danlu.core.errors import ConfigError
from danlu.models.heads.lm import LMHead
from danlu.models.network import EncoderDecoder, Network, Tower
from danlu.models.recurrent import ShortConvolution

_OUTPUT = re.compile(r"\.inner\.(shared\.)?(out|down)\.weight$")
"""Weights whose product is added to the residual stream."""


@dataclass(frozen=True, kw_only=True)
class InitialConfig:
    """How weights are drawn."""

    spread: float = 0.02
    """Standard deviation of linears and tables."""
    zero_outputs: bool = False
    """Whether what adds to the residual stream starts at 0: every block begins as the identity."""

    def __post_init__(self) -> None:
        if self.spread <= 0:
            raise ConfigError(f"spread is {self.spread}.", "Use a positive number such as 0.02.")


@torch.no_grad()
def draw_weights(network: Network, config: InitialConfig) -> None:
    """Draw every weight, in place, from torch's own generator."""
    keep = {
        parameter
        for module in network.modules()
        if isinstance(module, ShortConvolution)
        for parameter in module.parameters()
    }  # drawn by themselves, as wide as their taps
    for name, parameter in network.named_parameters():
        if parameter in keep:
            continue
        if parameter.dim() >= 2:
            parameter.normal_(0.0, config.spread)
        elif name.endswith(".bias") or name == "bias":
            parameter.zero_()
    head = network.head
    if isinstance(head, LMHead) and head.config.tied and head.config.scale != 1.0:
        nn.init.normal_(head.linear.weight, 0.0, 1.0)  # as T5's own, whose head scales it down (Raffel et al. 2020)
    towers: list[Tower] = [network, *([network.encoder] if isinstance(network, EncoderDecoder) else [])]
    for tower in towers:
        _draw_outputs(tower, config)


def _draw_outputs(tower: Tower, config: InitialConfig) -> None:
    """Layers that add to the residual stream; where the sum is normed there is nothing to hold back."""
    outputs = [weight for name, weight in tower.stack.named_parameters() if _OUTPUT.search(name)]
    factor = 1.0 if "sum" in tower.stack.config.norm_at else 1.0 / math.sqrt(max(1, len(outputs)))
    for weight in outputs:
        nn.init.zeros_(weight) if config.zero_outputs else weight.mul_(factor)
