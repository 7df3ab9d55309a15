"""The classification head: a logit for each label of a row (text, image, …)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from danlu.core.errors import ModelError
from danlu.models.linear import Linear
from danlu.models.pooling import Pooling, pool
from danlu.models.transform import Transform, TransformConfig


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """How hidden states become logits of labels."""

    labels: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    pooling: Pooling = "first"
    """Which tokens are read."""
    transform: TransformConfig | None = None
    """What is done to the pooled vector first."""
    bias: bool = True
    """Whether logits shift."""
    multi_label: bool = False
    """Whether labels are independent: probabilities are then sigmoids, else a softmax."""
    dropout: float = 0.0
    """Share of the pooled vector dropped in training."""

    def __post_init__(self) -> None:
        if not self.labels:
            raise ModelError("A classifier has no labels.", "Give id2label or num_labels in config.json.")

    def make(self, width: int) -> ClassifyHead:
        """The head of a stack of ``width``."""
        return ClassifyHead(self, width)


class ClassifyHead(nn.Module):
    """Pool, transform, one linear."""

    def __init__(self, config: ClassifyConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.transform = None if config.transform is None else Transform(config.transform, width)
        self.dropout = nn.Dropout(config.dropout)
        self.linear = Linear(width, len(config.labels), bias=config.bias)

    def forward(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """hidden: (N, D), rows of ``lengths`` laid end to end → logits (B, C)."""
        pooled = pool(hidden, lengths, self.config.pooling)
        if self.transform is not None:
            pooled = self.transform(pooled)
        return self.linear(self.dropout(pooled))

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, C) → (B, C) in fp32."""
        return logits.float().sigmoid() if self.config.multi_label else logits.float().softmax(dim=-1)


plugin = ClassifyConfig
