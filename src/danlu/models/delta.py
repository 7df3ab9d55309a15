"""Gated DeltaNet (Yang et al. 2024), as Qwen3-Next has it: linear attention that corrects its memory instead of only
adding to it, as a layer that mixes the tokens of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from danlu.core.errors import ModelError
from danlu.models.attention import Attend, Places, State
from danlu.models.linear import FusedLinear, Linear
from danlu.models.linear_attention import recur
from danlu.models.norms import NormConfig
from danlu.models.recurrent import GatedNorm, ShortConvolution, along_rows

_UNIT_EPSILON = 1e-6
"""Added to squared lengths of queries and keys before they are made unit vectors."""


@dataclass(frozen=True, kw_only=True)
class DeltaConfig:
    """One gated delta-rule layer."""

    num_key_heads: int
    """Heads of queries and keys."""
    num_value_heads: int
    """Heads of values; a multiple of the key heads."""
    key_width: int
    """Size of one query or key."""
    value_width: int
    """Size of one value."""
    conv_width: int = 4
    """Tokens the short convolution sees."""
    chunk: int = 64
    """Tokens read at once; changes speed, not results."""

    def __post_init__(self) -> None:
        for name in ("num_key_heads", "num_value_heads", "key_width", "value_width", "conv_width", "chunk"):
            if getattr(self, name) < 1:
                raise ModelError(
                    f"Model config: {name} is {getattr(self, name)}.", "It must be positive; is config.json whole?"
                )
        if self.num_value_heads % self.num_key_heads:
            raise ModelError(
                f"Model config: {self.num_value_heads} value heads cannot share {self.num_key_heads} key heads.",
                "The first must be a multiple of the second.",
            )

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.num_key_heads * self.key_width + self.num_value_heads * self.value_width

    @property
    def state_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """What is remembered of a row."""
        shared = self.num_value_heads // self.num_key_heads
        return {
            "inputs": (self.conv_width - 1, self.conv_channels),
            "memory": (self.num_key_heads, self.key_width, shared * self.value_width),
        }

    def make(self, width: int, norm: NormConfig, layer: int) -> nn.Module:
        """The layer for a residual stream of ``width``."""
        return DeltaNet(self, width, norm, layer)


class DeltaNet(nn.Module):
    """One linear makes, for each key head in turn, its query, key, values and gates; then all rates and decays."""

    def __init__(self, config: DeltaConfig, width: int, norm: NormConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        values = config.num_value_heads * config.value_width
        self.parts = (2 * (config.num_key_heads * config.key_width + values), 2 * config.num_value_heads)
        self.into = FusedLinear(width, self.parts)
        self.convolution = ShortConvolution(config.conv_channels, config.conv_width, bias=False)
        self.step_bias = nn.Parameter(torch.ones(config.num_value_heads))
        self.log_rate = nn.Parameter(torch.empty(config.num_value_heads).uniform_(0.01, 16.0).log())
        self.norm = GatedNorm(config.value_width, norm.epsilon, gate_first=False)
        self.out = Linear(values, width, bias=False)

    def forward(self, x: Tensor, places: Places, attend: Attend) -> Tensor:
        """(N, D) → (N, D)."""
        mixed, gate, rate, steps = self._project(x)
        y = along_rows(attend, self.layer, self._read, (mixed, rate, steps), self.config.state_shapes)
        return self.out(self.norm(y, gate).flatten(1).to(x.dtype))

    def _read(self, parts: Sequence[Tensor], real: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Channels (B, T, C), write rates and time steps (B, T, H) before curves → (B, T, H, V) and the new state."""
        config = self.config
        mixed, inputs = self.convolution(parts[0], state["inputs"], real)
        keys = config.num_key_heads * config.key_width
        q, k, v = mixed.split([keys, keys, config.num_value_heads * config.value_width], dim=-1)
        q, k = (_unit(part.unflatten(-1, (config.num_key_heads, -1))) for part in (q, k))
        q, v = q * config.key_width**-0.5, v.unflatten(-1, (config.num_value_heads, -1))
        rate = torch.sigmoid(parts[1])
        decay = nn.functional.softplus(parts[2] + self.step_bias) * -self.log_rate.to(v.dtype).exp()
        if real is not None:  # padding writes nothing and lets nothing fade
            rate, decay = rate * real.unsqueeze(-1), decay * real.unsqueeze(-1)
        y, memory = recur(q, k, v, decay, state["memory"], chunk=config.chunk, rate=rate)
        return y, {"inputs": inputs, "memory": memory}

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, D) → what is convolved (N, C), gates (N, H, V), write rates and time steps (N, H) before their curves."""
        config = self.config
        shared = config.num_value_heads // config.num_key_heads
        sizes = [config.key_width, config.key_width, shared * config.value_width, shared * config.value_width]
        heads, scalars = self.into(x).split(self.parts, dim=-1)
        q, k, v, gate = heads.unflatten(-1, (config.num_key_heads, -1)).split(sizes, dim=-1)
        rate, steps = scalars.unflatten(-1, (config.num_key_heads, -1)).split([shared, shared], dim=-1)
        gate = gate.reshape(x.shape[0], config.num_value_heads, -1)
        return torch.cat([q.flatten(1), k.flatten(1), v.flatten(1)], dim=-1), gate, rate.flatten(1), steps.flatten(1)


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + _UNIT_EPSILON)
