"""Feed-forward layers, plain and gated. Experts are in experts.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from danlu.core.errors import ModelError
from danlu.models.linear import FusedLinear, Linear, fastest_product

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
        if self._slope is None or not both.requires_grad or not torch.is_grad_enabled():
            gate, up = both.chunk(2, dim=-1)
            return self.down(_dropped(self.activation(gate) * up, self))
        is_dropping = bool(self.dropout) and self.training
        if type(self.down) is Linear and not is_dropping:  # no adapter, nothing quantised
            return cast(Tensor, _GatedDown.apply(both, self.down.weight, self.down.bias, self.activation, self._slope))
        return self.down(_dropped(cast(Tensor, _Gated.apply(both, self.activation, self._slope)), self))


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
        return _gradient(gradient, both, ctx.activation, ctx.slope), None, None


class _GatedDown(torch.autograd.Function):
    """down(activation(gate) · up) of (N, 2F). The inner values, half as many, are made again for the gradient of the
    weight instead of being kept."""

    @staticmethod
    def forward(
        ctx: Any, both: Tensor, weight: Tensor, bias: Tensor | None, activation: Callable[[Tensor], Tensor],
        slope: Slope,
    ) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  # fmt: skip
        ctx.save_for_backward(both, weight)
        ctx.activation, ctx.slope = activation, slope
        gate, up = both.chunk(2, dim=-1)
        return fastest_product(activation(gate).mul_(up), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        both, weight = ctx.saved_tensors
        for_both, for_weight, for_bias = ctx.needs_input_grad[:3]
        rows = gradient.flatten(0, -2)
        inner = both.new_empty((*both.shape[:-1], both.shape[-1] // 2)) if for_weight else None
        found = None
        if for_both or for_weight:
            found = _gradient(fastest_product(gradient, weight.t()), both, ctx.activation, ctx.slope, inner)
        return (
            found if for_both else None,
            None if inner is None else fastest_product(rows.t(), inner.flatten(0, -2).t()),
            rows.sum(0) if for_bias else None,
            None,
            None,
        )


def _gradient(
    gradient: Tensor, both: Tensor, activation: Callable[[Tensor], Tensor], slope: Slope, inner: Tensor | None = None
) -> Tensor:
    """Of (N, 2F), from that of the inner values (N, F), which are written to ``inner`` if that is given."""
    found = torch.empty_like(both)
    num_rows = max(1, _AT_ONCE // both.shape[-1]) if both.device.type == "cpu" else max(1, both[..., 0].numel())
    inners = None if inner is None else inner.flatten(0, -2).split(num_rows)
    pieces = zip(*(x.flatten(0, -2).split(num_rows) for x in (both, gradient, found)), strict=True)
    for number, (here, g, out) in enumerate(pieces):
        (gate, up), (for_gate, for_up) = here.chunk(2, dim=-1), out.chunk(2, dim=-1)
        active = activation(gate)
        torch.mul(g, active, out=for_up)
        slope(g * up, gate, for_gate)
        if inners is not None:
            torch.mul(active, up, out=inners[number])
    return found


def _dropped(inner: Tensor, layer: FeedForward | GatedFeedForward) -> Tensor:
    return nn.functional.dropout(inner, layer.dropout) if layer.dropout and layer.training else inner
