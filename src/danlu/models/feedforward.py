"""Feed-forward layers, plain and gated. Experts are in experts.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
_AT_ONCE = 1 << 19
"""Numbers of a gradient taken at once: what lies between stays in the cache."""

Slope = Callable[[Tensor, Tensor, Tensor], object]
"""(gradient of the activation's output, its input, where the gradient of its input is written)."""

SLOPES: dict[str, Slope] = {
    "silu": lambda g, x, out: torch.ops.aten.silu_backward.grad_input(g, x, grad_input=out),
    "gelu": lambda g, x, out: torch.ops.aten.gelu_backward.grad_input(g, x, grad_input=out),
    "gelu_tanh": lambda g, x, out: torch.ops.aten.gelu_backward.grad_input(g, x, approximate="tanh", grad_input=out),
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
        self._slope = SLOPES.get(config.activation)
        self.gate_up = FusedLinear(width, (config.width, config.width), bias=config.bias)
        self.down = Linear(config.width, width, bias=config.bias)

    def forward(self, x: Tensor, places: Places, attend: Attend) -> Tensor:
        """(N, D) → (N, D)."""
        both = self.gate_up(x)  # (N, 2F)
        if self._slope is not None and both.requires_grad and torch.is_grad_enabled():
            return self.down(_dropped(cast(Tensor, _Gated.apply(both, self.activation, self._slope)), self))
        gate, up = both.chunk(2, dim=-1)
        return self.down(_dropped(self.activation(gate) * up, self))


class _Gated(torch.autograd.Function):
    """activation(gate) · up of (N, 2F), keeping nothing else for the gradient, which is written in one piece."""

    @staticmethod
    def forward(ctx: Any, both: Tensor, activation: Callable[[Tensor], Tensor], slope: Slope) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(both)
        ctx.activation, ctx.slope = activation, slope
        gate, up = both.chunk(2, dim=-1)
        return activation(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (both,) = ctx.saved_tensors
        found = torch.empty_like(both)
        num_rows = max(1, _AT_ONCE // both.shape[-1]) if both.device.type == "cpu" else max(1, both[..., 0].numel())
        for rows in zip(*(x.flatten(0, -2).split(num_rows) for x in (both, gradient, found)), strict=True):
            (gate, up), g, (for_gate, for_up) = rows[0].chunk(2, dim=-1), rows[1], rows[2].chunk(2, dim=-1)
            torch.mul(g, ctx.activation(gate), out=for_up)
            ctx.slope(g * up, gate, for_gate)
        return found, None, None


def _dropped(inner: Tensor, layer: FeedForward | GatedFeedForward) -> Tensor:
    return nn.functional.dropout(inner, layer.dropout) if layer.dropout and layer.training else inner
