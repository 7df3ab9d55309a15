"""The embedding head: one vector a row, for search and comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from danlu.models.linear import Linear
from danlu.models.pooling import Pooling, pool
from danlu.models.transform import Transform, TransformConfig


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """How hidden states become one vector."""

    pooling: Pooling = "mean"
    """Which tokens are read."""
    transform: TransformConfig | None = None
    """What is done to the pooled vector (BERT's pooler)."""
    projection: int | None = None
    """Size of the vector when a linear brings it to a shared space; None for the stack's own width."""
    projection_bias: bool = False
    """Whether that linear shifts."""
    normalise: bool = True
    """Whether vectors have length 1."""

    def make(self, width: int) -> EmbedHead:
        """The head of a stack of ``width``."""
        return EmbedHead(self, width)


class EmbedHead(nn.Module):
    """Pool, transform, project, normalise."""

    def __init__(self, config: EmbedConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.transform = None if config.transform is None else Transform(config.transform, width)
        self.projection = None
        if config.projection is not None:
            self.projection = Linear(width, config.projection, bias=config.projection_bias)

    def forward(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """hidden: (N, D), rows of ``lengths`` laid end to end → (B, P)."""
        vector = pool(hidden, lengths, self.config.pooling)
        if self.transform is not None:
            vector = self.transform(vector)
        if self.projection is not None:
            vector = self.projection(vector)
        return nn.functional.normalize(vector, dim=-1) if self.config.normalise else vector


plugin = EmbedConfig
