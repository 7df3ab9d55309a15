"""A whole model: an input, a stack and a head; with an encoder before it where there is one. Knows no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from danlu.models.attend import Memory, PackedAttend, row_positions
from danlu.models.attention import Attend
from danlu.models.block import Stack, StackConfig
from danlu.models.heads.lm import LMHead, LMHeadConfig
from danlu.models.heads.rank import RankConfig, RankHead
from danlu.models.quant import Int8Embedding, Int8Linear


class InputConfig(Protocol):
    """What makes embeddings of what comes in."""

    def make(self) -> nn.Module:
        """The module: forward(what comes in, positions (N,)) → (N, D)."""
        ...


class HeadConfig(Protocol):
    """What makes answers of hidden states."""

    def make(self, width: int) -> nn.Module:
        """The head of a stack of ``width``."""
        ...


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """An input and a stack."""

    input: InputConfig
    """Tokens, patches, …"""
    stack: StackConfig
    """The blocks."""

    @property
    def vocabulary_size(self) -> int:
        """V: rows of the token embedding; only where tokens come in."""
        return self.input.vocabulary_size  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One tower and its head; with ``encoder`` the tower is a decoder that looks back at it."""

    tower: TowerConfig
    """What the head reads."""
    head: HeadConfig | None
    """What the model answers; None for hidden states alone."""
    encoder: TowerConfig | None = None
    """What reads the source of an encoder-decoder."""
    shared_tokens: bool = True
    """Whether encoder and decoder have one token embedding."""

    @property
    def stack(self) -> StackConfig:
        """The tower's blocks."""
        return self.tower.stack

    @property
    def width(self) -> int:
        """D: size of the residual stream."""
        return self.tower.stack.width

    @property
    def num_layers(self) -> int:
        """Blocks of the tower."""
        return self.tower.stack.num_layers

    @property
    def context_length(self) -> int:
        """Most tokens a row may have."""
        return self.tower.stack.context_length

    @property
    def vocabulary_size(self) -> int:
        """V: rows of the token embedding."""
        return self.tower.vocabulary_size

    @property
    def is_tied(self) -> bool:
        """Whether the head reads the token embedding's own weights."""
        return isinstance(self.head, LMHeadConfig | RankConfig) and self.head.tied

    def make(self) -> Network:
        """The model, weights not set."""
        return Network(self) if self.encoder is None else EncoderDecoder(self)


class Tower(nn.Module):
    """An input and a stack: what comes in becomes hidden states."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.embedding = config.input.make()
        self.stack = Stack(config.stack)

    def forward(self, inputs: Tensor, positions: Tensor, attend: Attend, **extra: Any) -> Tensor:
        """ids, positions: (N,) → hidden states (N, D). ``extra`` goes to the input (token types)."""
        return self.stack(self.embedding(inputs, positions, **extra), positions, attend)

    def rows(self, inputs: Tensor, lengths: Sequence[int], **extra: Any) -> Tensor:
        """Hidden states of rows laid end to end, nothing cached: ids (N,) → (N, D)."""
        positions = row_positions(lengths).to(inputs.device)
        return self(inputs, positions, PackedAttend(lengths, inputs.device), **extra)


class Network(Tower):
    """A tower and its head. Encoder and decoder of a pair of towers are told apart by ``EncoderDecoder``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.tower)
        self.config = config
        self.head = None if config.head is None else config.head.make(config.width)
        self.tie()

    def tie(self) -> None:
        """Make layers that share weights share them (again, after weights were put in)."""
        if not self.config.is_tied:
            return
        table, head = self.embedding.tokens, self.head
        assert isinstance(head, LMHead | RankHead)
        if isinstance(table, Int8Embedding):
            head.linear = Int8Linear(table.weight, table.scale, head.linear.bias)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            head.linear.weight = table.weight  # pyright: ignore[reportAttributeAccessIssue]

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, D) → (M, V): the language-model head."""
        assert self.head is not None
        return self.head(hidden)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device


class EncoderDecoder(Network):
    """A network with a second tower whose hidden states it looks back at."""

    def __init__(self, config: ModelConfig) -> None:
        assert config.encoder is not None
        super().__init__(config)
        self.encoder = Tower(config.encoder)
        self.tie()

    def tie(self) -> None:
        super().tie()
        if self.config.shared_tokens and hasattr(self, "encoder"):
            self.encoder.embedding.tokens = self.embedding.tokens

    def encode(self, ids: Tensor, lengths: Sequence[int]) -> Memory:
        """Read sources laid end to end: ids (M,) → what the decoder looks back at."""
        return Memory(self.encoder.rows(ids, lengths), tuple(lengths))
