"""The language-model head: a logit for each token of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from danlu.models.linear import Linear
from danlu.models.transform import Transform, TransformConfig


@dataclass(frozen=True, kw_only=True)
class LMHeadConfig:
    """How hidden states become logits."""

    vocabulary_size: int
    """V: rows of the head."""
    tied: bool = True
    """Whether it reads the token embedding's own weights."""
    bias: bool = False
    """Whether logits shift."""
    transform: TransformConfig | None = None
    """What is done to hidden states first (masked language models)."""
    scale: float = 1.0
    """Hidden states are multiplied by this first (T5)."""
    softcap: float | None = None
    """Logits are squeezed into ± this (Gemma 2)."""

    def make(self, width: int) -> LMHead:
        """The head of a stack of ``width``."""
        return LMHead(self, width)


class LMHead(nn.Module):
    """Hidden states in, next-token (or masked-token) logits out."""

    def __init__(self, config: LMHeadConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.transform = None if config.transform is None else Transform(config.transform, width)
        self.linear = Linear(width, config.vocabulary_size, bias=config.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(M, D) → (M, V). Give it only the positions whose prediction is wanted: it is the largest product."""
        config = self.config
        if self.transform is not None:
            hidden = self.transform(hidden)
        if config.scale != 1.0:
            hidden = hidden * config.scale
        logits = self.linear(hidden)
        return logits if config.softcap is None else config.softcap * torch.tanh(logits / config.softcap)


plugin = LMHeadConfig
