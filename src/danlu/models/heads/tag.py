"""The tagging head: a logit for each label of every token (entities, parts of speech)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from danlu.core.errors import ModelError
from danlu.models.linear import Linear
from danlu.models.transform import Transform, TransformConfig


@dataclass(frozen=True, kw_only=True)
class TagConfig:
    """How hidden states become logits of labels."""

    labels: tuple[str, ...]
    """Names of the tags, in the order of the logits; entities as B-X, I-X and O."""
    transform: TransformConfig | None = None
    """What is done to each hidden state first."""
    bias: bool = True
    """Whether logits shift."""
    dropout: float = 0.0
    """Share of hidden states dropped in training."""

    def __post_init__(self) -> None:
        if not self.labels:
            raise ModelError("A tagger has no labels.", "Give id2label or num_labels in config.json.")

    def make(self, width: int) -> TagHead:
        """The head of a stack of ``width``."""
        return TagHead(self, width)


class TagHead(nn.Module):
    """One linear on every token."""

    def __init__(self, config: TagConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.transform = None if config.transform is None else Transform(config.transform, width)
        self.dropout = nn.Dropout(config.dropout)
        self.linear = Linear(width, len(config.labels), bias=config.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, D) → logits (N, C)."""
        if self.transform is not None:
            hidden = self.transform(hidden)
        return self.linear(self.dropout(hidden))


plugin = TagConfig
