"""Tokens in: ids become embeddings, with learnt or fixed positions where a stack has none of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from danlu.core.errors import ModelError
from danlu.models.norms import NormConfig
from danlu.models.positions import sinusoids


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    """A table of token embeddings and what is added to it."""

    vocabulary_size: int
    """V: rows of the table."""
    width: int
    """D: size of an embedding."""
    positions: Literal["none", "learned", "sinusoidal", "sinusoidal_interleaved"] = "none"
    """What tells places apart; none where attention does it."""
    num_positions: int = 0
    """Rows of the table of learnt positions, offset included."""
    position_offset: int = 0
    """The first token's row in that table."""
    num_types: int = 0
    """Segment embeddings (BERT's sentence A and B)."""
    norm: NormConfig | None = None
    """A norm over the sum."""
    scale: float = 1.0
    """Token embeddings are multiplied by this, in their own number type."""
    dropout: float = 0.0
    """Share dropped in training."""

    def __post_init__(self) -> None:
        for name in ("vocabulary_size", "width"):
            if getattr(self, name) < 1:
                raise ModelError(
                    f"Model config: {name} is {getattr(self, name)}.", "It must be positive; is config.json whole?"
                )

    def make(self) -> TokenInput:
        """The module."""
        return TokenInput(self)


class TokenInput(nn.Module):
    """Token + position + type, normed and scaled as the config says."""

    def __init__(self, config: TokensConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens: nn.Module = TokenEmbedding(config.vocabulary_size, config.width)
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.empty(config.num_positions, config.width))
        if config.num_types:
            self.types = nn.Parameter(torch.empty(config.num_types, config.width))
        self.norm = None if config.norm is None else config.norm.make(config.width)

    def forward(self, ids: Tensor, positions: Tensor, types: Tensor | None = None) -> Tensor:
        """ids, positions, types: (N,) → (N, D). Without ``types`` all tokens are of the first type."""
        config = self.config
        x = self.tokens(ids)
        if config.scale != 1.0:
            x = x * torch.tensor(config.scale, dtype=x.dtype)
        if config.num_types:
            x = x + (self.types[0] if types is None else nn.functional.embedding(types, self.types))
        if config.positions == "learned":
            x = x + nn.functional.embedding(positions + config.position_offset, self.positions)
        elif config.positions != "none":
            interleaved = config.positions == "sinusoidal_interleaved"
            x = x + sinusoids(positions, config.width, interleaved=interleaved).to(x.dtype)
        if self.norm is not None:
            x = self.norm(x)
        return nn.functional.dropout(x, config.dropout) if config.dropout and self.training else x


class TokenEmbedding(nn.Module):
    """A row of weights for each token id."""

    def __init__(self, vocabulary_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary_size, width))

    def forward(self, ids: Tensor) -> Tensor:
        """(N,) → (N, D)."""
        return nn.functional.embedding(ids, self.weight)


plugin = TokensConfig
