"""Feed-forward layers, plain and gated. Experts are in experts.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from danlu.core.errors import ModelError
from danlu.models.linear import FusedLinear, Linear

if TYPE_CHECKING:
    from danlu.models.attention import Attend, Places

Activation = Literal["silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu6", "tanh"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": nn.functional.relu,
    "relu6": nn.functional.relu6,
    "tanh": torch.tanh,
}


@dataclass(frozen=True, kw_only=True)
class FeedForwardConfig:
    """The second half of a block."""

    width: int
    """F: inner size."""
    activation: Activation = "silu"
    """Between the two products."""
    gated: bool = True
    """Whether a second product gates the first (Shazeer 2020)."""
    bias: bool = False
    """Whether its linears shift."""
    dropout: float = 0.0
    """Share of the inner values dropped in training."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ModelError(
                f"Model config: feed-forward width is {self.width}.", "It must be positive; is config.json whole?"
            )

    def make(self, width: int) -> nn.Module:
        """The layer for a residual stream of ``width``."""
        return GatedFeedForward(self, width) if self.gated else FeedForward(self, width)


class FeedForward(nn.Module):
    """down(activation(up(x)))."""

    def __init__(self, config: FeedForwardConfig, width: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = config.dropout
        self.up = Linear(width, config.width, bias=config.bias)
        self.down = Linear(config.width, width, bias=config.bias)

    def forward(self, x: Tensor, places: Places, attend: Attend) -> Tensor:
        """(N, D) → (N, D)."""
        return self.down(_dropped(self.activation(self.up(x)), self))


class GatedFeedForward(nn.Module):
    """down(activation(gate(x)) · up(x)); gate and up are one linear, so x is read once."""

    def __init__(self, config: FeedForwardConfig, width: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = config.dropout
        self.gate_up = FusedLinear(width, (config.width, config.width), bias=config.bias)
        self.down = Linear(config.width, width, bias=config.bias)

    def forward(self, x: Tensor, places: Places, attend: Attend) -> Tensor:
        """(N, D) → (N, D)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # (N, F) each
        return self.down(_dropped(self.activation(gate) * up, self))


def _dropped(inner: Tensor, layer: FeedForward | GatedFeedForward) -> Tensor:
    return nn.functional.dropout(inner, layer.dropout) if layer.dropout and layer.training else inner
