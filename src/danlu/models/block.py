"""The block and the stack. No task and no family name appears here.

A block is two or three branches of a residual stream, and a branch is a layer with norms around it. Where the norms
stand is all that tells pre-norm (input), post-norm (sum), OLMo 2 (output) and Gemma's sandwich (input, output) apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from danlu.core.errors import ModelError
from danlu.models.attention import Attend, AttentionConfig, CrossAttention, Places
from danlu.models.norms import NormConfig
from danlu.models.positions import RelativeBias, RelativeConfig, Rotary, RotaryConfig

NormPlace = Literal["input", "output", "sum"]


class MixerConfig(Protocol):
    """What lets tokens of a row meet: softmax attention, or a recurrent layer."""

    @property
    def state_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """What the layer remembers of a row, by name; empty for attention, which keeps keys and values."""
        ...

    def make(self, width: int, norm: NormConfig, layer: int) -> nn.Module:
        """The layer: forward(x (N, D), places, attend) → (N, D)."""
        ...


class InnerConfig(Protocol):
    """What works on each token alone: a feed-forward layer, or experts."""

    def make(self, width: int) -> nn.Module:
        """The layer: forward(x (N, D), places, attend) → (N, D)."""
        ...


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """One block."""

    mixer: MixerConfig
    """Attention, or a recurrent layer."""
    cross: AttentionConfig | None = None
    """Attention to an encoder's memory."""
    feedforward: InnerConfig | None = None
    """Feed-forward or experts."""
    mixer_norm_at: tuple[NormPlace, ...] | None = None
    """Where the mixer's norms stand; None for the stack's ``norm_at``."""
    mixer_dropout: float | None = None
    """Share of the mixer's output dropped in training; None for the stack's ``dropout``."""


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """A stack of blocks on a residual stream."""

    width: int
    """D: size of the residual stream."""
    layers: tuple[LayerConfig, ...]
    """One config a block; equal ones are one object."""
    norm: NormConfig
    """The norm used everywhere."""
    context_length: int
    """Most tokens a row may have."""
    norm_at: tuple[NormPlace, ...] = ("input",)
    """Where the norms of a branch stand: at its input, at its output, or after the sum."""
    final_norm: bool = True
    """Whether the stack ends with a norm."""
    relative: RelativeConfig | None = None
    """Relative-position bias, shared by all layers."""
    dropout: float = 0.0
    """Share of each branch's output dropped in training."""

    def __post_init__(self) -> None:
        for name in ("width", "context_length"):
            if getattr(self, name) < 1:
                raise ModelError(
                    f"Model config: {name} is {getattr(self, name)}.", "It must be positive; is config.json whole?"
                )

    @property
    def num_layers(self) -> int:
        """Blocks in the stack."""
        return len(self.layers)

    @property
    def is_causal(self) -> bool:
        """Whether no token sees anything after itself, so that answers can be written token by token."""
        return all(getattr(layer.mixer, "causal", True) for layer in self.layers)

    @property
    def is_recurrent(self) -> bool:
        """Whether some layer keeps a state, which cannot be taken back."""
        return any(layer.mixer.state_shapes for layer in self.layers)


class Branch(nn.Module):
    """x → norm(x + norm(layer(norm(x)))), with the norms that the config asks for."""

    def __init__(
        self, config: StackConfig, inner: nn.Module, norm_at: tuple[NormPlace, ...], dropout: float | None = None
    ) -> None:
        super().__init__()
        self.inner = inner
        self.input_norm = config.norm.make(config.width) if "input" in norm_at else None
        self.output_norm = config.norm.make(config.width) if "output" in norm_at else None
        self.sum_norm = config.norm.make(config.width) if "sum" in norm_at else None
        self.dropout = config.dropout if dropout is None else dropout

    def forward(self, x: Tensor, places: Places, attend: Attend) -> Tensor:
        """(N, D) → (N, D)."""
        change = self.inner(x if self.input_norm is None else self.input_norm(x), places, attend)
        if self.output_norm is not None:
            change = self.output_norm(change)
        if self.dropout and self.training:
            change = nn.functional.dropout(change, self.dropout)
        x = x + change
        return x if self.sum_norm is None else self.sum_norm(x)


class Block(nn.Module):
    """Mixer, then cross-attention where there is a memory, then feed-forward."""

    def __init__(self, config: StackConfig, layer: int) -> None:
        super().__init__()
        wanted = config.layers[layer]
        mixer = wanted.mixer.make(config.width, config.norm, layer)
        norm_at = config.norm_at if wanted.mixer_norm_at is None else wanted.mixer_norm_at
        self.mixer = Branch(config, mixer, norm_at, wanted.mixer_dropout)
        self.cross = None
        if wanted.cross is not None:
            self.cross = Branch(config, CrossAttention(wanted.cross, config.width, layer), config.norm_at)
        self.feedforward = None
        if wanted.feedforward is not None:
            self.feedforward = Branch(config, wanted.feedforward.make(config.width), config.norm_at)

    def forward(self, x: Tensor, places: Places, attend: Attend) -> Tensor:
        """(N, D) → (N, D)."""
        x = self.mixer(x, places, attend)
        if self.cross is not None:
            x = self.cross(x, places, attend)
        return x if self.feedforward is None else self.feedforward(x, places, attend)


class Stack(nn.Module):
    """Blocks in a row and the final norm: embeddings in, hidden states out."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = config.norm.make(config.width) if config.final_norm else None
        kinds = {m.rotary: None for m in _attentions(config) if m.rotary is not None}
        self._rotaries: dict[RotaryConfig, Rotary] = {kind: Rotary(kind) for kind in kinds}
        self.relative = None
        if config.relative is not None:
            self.relative = RelativeBias(config.relative, _attentions(config)[0].num_heads)

    def forward(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """x: (N, D), positions: (N,) → (N, D)."""
        places = self.places(positions, x.dtype, attend)
        for block in self.blocks:
            x = block(x, places, attend)
        return x if self.norm is None else self.norm(x)

    def places(self, positions: Tensor, dtype: torch.dtype, attend: Attend) -> Places:
        """What every block needs to know of where tokens stand."""
        lengths = attend.row_lengths() if any(kind.by_length for kind in self._rotaries) else None
        angles = {kind: rotary(positions, dtype, lengths) for kind, rotary in self._rotaries.items()}
        bias = None if self.relative is None else self.relative(attend.distances())
        return Places(positions, angles, bias)


def _attentions(config: StackConfig) -> list[AttentionConfig]:
    return [layer.mixer for layer in config.layers if isinstance(layer.mixer, AttentionConfig)]
