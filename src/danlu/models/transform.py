"""A dense layer between a stack and its head, as BERT's pooler and masked-language heads have it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from danlu.models.feedforward import ACTIVATIONS, Activation
from danlu.models.linear import Linear
from danlu.models.norms import NormConfig


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """Dense, activation, norm."""

    activation: Activation
    """After the dense layer."""
    norm: NormConfig | None = None
    """After the activation."""
    bias: bool = True
    """Whether the dense layer shifts."""


class Transform(nn.Module):
    """norm(activation(dense(x)))."""

    def __init__(self, config: TransformConfig, width: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.dense = Linear(width, width, bias=config.bias)
        self.norm = None if config.norm is None else config.norm.make(width)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        x = self.activation(self.dense(x))
        return x if self.norm is None else self.norm(x)
