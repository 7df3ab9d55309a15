"""Where a token stands: rotary angles with every scaling in use, sinusoids, and T5's relative bias.

Rotary embeddings: Su et al. 2021, half-split layout as in Hugging Face checkpoints. Knows no family names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from danlu.core.errors import ModelError

ScalingKind = Literal["none", "linear", "dynamic", "yarn", "llama3", "longrope"]


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary angles are stretched to read beyond the length a model was trained on."""

    kind: ScalingKind = "none"
    """linear (Chen et al. 2023), dynamic NTK, yarn (Peng et al. 2023), llama3 or longrope (Ding et al. 2024)."""
    factor: float = 1.0
    """By how much the context is stretched."""
    original_length: int = 0
    """Tokens of a row in the original training; every kind but linear needs it."""
    low_factor: float = 1.0
    """llama3: wavelengths longer than original_length / low_factor are stretched whole."""
    high_factor: float = 4.0
    """llama3: wavelengths shorter than original_length / high_factor are left alone."""
    beta_fast: float = 32.0
    """yarn: channels that turn more often than this over the original length are left alone."""
    beta_slow: float = 1.0
    """yarn: channels that turn less often than this are stretched whole."""
    truncate: bool = True
    """yarn: whether the borders between channels are rounded to whole channels."""
    attention_factor: float = 1.0
    """Cosines and sines are multiplied by this (yarn, longrope)."""
    short_factors: tuple[float, ...] = ()
    """longrope: a divisor for each frequency, for rows within the original length."""
    long_factors: tuple[float, ...] = ()
    """longrope: the same for longer rows."""

    def __post_init__(self) -> None:
        if self.factor <= 0.0:
            raise ModelError(f"The rope scaling factor is {self.factor}.", "It must be positive; is config.json whole?")
        if self.kind not in ("none", "linear") and self.original_length < 1:
            raise ModelError(
                f"Rope scaling '{self.kind}' lacks the length of the original training.",
                "Give original_max_position_embeddings in config.json.",
            )


@dataclass(frozen=True, kw_only=True)
class RotaryConfig:
    """Rotary positions of one kind of layer."""

    width: int
    """How many leading channels of a head are turned; even."""
    base: float = 10_000.0
    """Base of the frequencies (theta)."""
    scaling: RopeScaling = RopeScaling()
    """How angles are stretched."""

    def __post_init__(self) -> None:
        if self.width < 2 or self.width % 2:
            raise ModelError(f"Rotary width {self.width} is odd or too small.", "It must be an even number, 2 or more.")
        for factors in (self.scaling.short_factors, self.scaling.long_factors):
            if self.scaling.kind == "longrope" and len(factors) != self.width // 2:
                raise ModelError(
                    f"Rope scaling 'longrope' has {len(factors)} factors.", f"It needs {self.width // 2} of each."
                )

    @property
    def by_length(self) -> bool:
        """Whether angles depend on how long a row is. While a row is written it grows, and keys read earlier stay as
        they were turned then; tokens that rows share count as of the longest row."""
        scaling = self.scaling
        return scaling.kind == "dynamic" or scaling.short_factors != scaling.long_factors


class Rotary(nn.Module):
    """Cosines and sines of positions, made in fp32 and cast last: angles in bf16 lose long positions."""

    def __init__(self, config: RotaryConfig) -> None:
        super().__init__()
        self.config = config
        self._kept: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def forward(self, positions: Tensor, dtype: torch.dtype, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(N,) → cos, sin of shape (N, 1, R), R turned channels; sin carries the sign of the half rotation.

        ``lengths`` (N,) is how long the row of each token is: needed where ``config.by_length``.
        """
        angles = positions.float().unsqueeze(1) * self._frequencies(positions.device, lengths)  # (N, R/2)
        factor = self.config.scaling.attention_factor
        cos, sin = angles.cos() * factor, angles.sin() * factor
        cos, sin = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
        return cos.to(dtype).unsqueeze(1), sin.to(dtype).unsqueeze(1)

    def _frequencies(self, device: torch.device, lengths: Tensor | None) -> Tensor:
        """(R/2,), or (N, R/2) where they depend on the row."""
        if device not in self._kept:
            plain = frequencies(self.config).to(device)
            self._kept[device] = plain, self._other(plain)
        plain, other = self._kept[device]
        if not self.config.by_length:
            return plain
        assert lengths is not None, "these positions depend on how long a row is"
        scaling, lengths = self.config.scaling, lengths.unsqueeze(1)  # (N, 1)
        if scaling.kind == "longrope":
            return torch.where(lengths > scaling.original_length, other, plain)
        stretch = scaling.factor * lengths / scaling.original_length - (scaling.factor - 1.0)
        return plain * torch.where(lengths > scaling.original_length, stretch, 1.0) ** other

    def _other(self, plain: Tensor) -> Tensor:
        """longrope: the frequencies of long rows. dynamic: the power of the stretch that each frequency gets, which is
        what a base grown by stretch ** (R / (R - 2)) comes to."""
        scaling, width = self.config.scaling, self.config.width
        if scaling.kind == "longrope":
            short, long = (torch.tensor(x, device=plain.device) for x in (scaling.short_factors, scaling.long_factors))
            return plain * short / long
        return -torch.arange(0, width, 2, device=plain.device) / max(width - 2, 1)


def frequencies(config: RotaryConfig) -> Tensor:
    """Turns per token of each pair of channels, fp32 (R/2,), in rows within the original length."""
    scaling, width = config.scaling, config.width
    with torch.device("cpu"):
        plain = 1.0 / config.base ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
        if scaling.kind == "linear":
            return plain / scaling.factor
        if scaling.kind == "llama3":
            return _llama3(plain, scaling)
        if scaling.kind == "yarn":
            return _yarn(plain, config)
        if scaling.kind == "longrope":
            return plain / torch.tensor(scaling.short_factors)
        return plain


def _llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Long waves stretched, short ones kept, a ramp between them (Llama 3.1 model card)."""
    turns = scaling.original_length * plain / (2.0 * math.pi)  # over the original length
    ramp = ((turns - scaling.low_factor) / (scaling.high_factor - scaling.low_factor)).clamp(0.0, 1.0)
    return plain * (ramp + (1.0 - ramp) / scaling.factor)


def _yarn(plain: Tensor, config: RotaryConfig) -> Tensor:
    """Interpolation by channel: fast ones kept, slow ones stretched (Peng et al. 2023, section 3.2)."""
    scaling, width = config.scaling, config.width

    def channel(turns: float) -> float:
        """The pair of channels that makes this many turns over the original length."""
        return width * math.log(scaling.original_length / (turns * 2.0 * math.pi)) / (2.0 * math.log(config.base))

    low, high = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    span = high - low if high != low else 0.001
    stretched = ((torch.arange(width // 2, dtype=torch.float32) - low) / span).clamp(0.0, 1.0)
    return plain / scaling.factor * stretched + plain * (1.0 - stretched)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn heads by their positions. x: (N, H, E); cos, sin: (N, 1, R), R ≤ E leading channels → (N, H, E)."""
    width = cos.shape[-1]
    if width == x.shape[-1]:
        return torch.addcmul(x * cos, torch.roll(x, width // 2, dims=-1), sin)
    turned, rest = x.split([width, x.shape[-1] - width], dim=-1)
    return torch.cat([torch.addcmul(turned * cos, torch.roll(turned, width // 2, dims=-1), sin), rest], dim=-1)


def sinusoids(positions: Tensor, width: int, *, interleaved: bool) -> Tensor:
    """Fixed positions of the original Transformer (Vaswani et al. 2017, section 3.5): (N,) → fp32 (N, D).

    Interleaved puts sine and cosine of a frequency side by side, as the paper does; otherwise all sines come first, as
    in Marian. An odd width has one sine more.
    """
    half = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device)
    angles = positions.float().unsqueeze(1) / 10_000.0 ** (half / width)  # (N, ⌈D/2⌉)
    sine, cosine = angles.sin(), angles.cos()[:, : width // 2]
    if not interleaved:
        return torch.cat([sine, cosine], dim=1)
    table = torch.empty(len(positions), width, device=positions.device)
    table[:, 0::2], table[:, 1::2] = sine, cosine
    return table


@dataclass(frozen=True, kw_only=True)
class RelativeConfig:
    """T5's relative positions (Raffel et al. 2020): a learnt bias for each head and bucket of distances."""

    num_buckets: int = 32
    """Rows of the table."""
    max_distance: int = 128
    """All distances from here on share the last bucket."""
    bidirectional: bool = True
    """Whether tokens ahead have buckets of their own (encoder)."""


class RelativeBias(nn.Module):
    """Bias of attention scores by distance, shared by all layers of a stack."""

    def __init__(self, config: RelativeConfig, num_heads: int) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_buckets, num_heads))

    def forward(self, distances: Tensor) -> Tensor:
        """Place of the key minus place of the query: (…, T, S) → (…, H, T, S)."""
        return nn.functional.embedding(self._buckets(distances), self.weight).movedim(-1, -3)

    def _buckets(self, distances: Tensor) -> Tensor:
        """Half of the buckets hold one distance each, the rest grow with the logarithm."""
        count, furthest = self.config.num_buckets, self.config.max_distance
        first = torch.zeros_like(distances)
        if self.config.bidirectional:
            count //= 2
            first = (distances > 0) * count
            away = distances.abs()
        else:
            away = (-distances).clamp_min(0)
        exact = count // 2
        grown = torch.log(away.clamp_min(1).float() / exact) / math.log(furthest / exact) * (count - exact)
        return first + torch.where(away < exact, away, (exact + grown.long()).clamp_max(count - 1))
