"""Mamba-2 (Dao & Gu 2024): a state space with one decay a head, as a layer that mixes the tokens of a row.

It keeps no keys and values: a row is remembered as one matrix a head and the last inputs of a short convolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from danlu.core.errors import ModelError
from danlu.models.attention import Attend, Places, State
from danlu.models.linear import Linear
from danlu.models.linear_attention import recur
from danlu.models.norms import NormConfig
from danlu.models.recurrent import GatedNorm, ShortConvolution, along_rows


@dataclass(frozen=True, kw_only=True)
class Mamba2Config:
    """One Mamba-2 layer."""

    num_heads: int
    """Heads, each with a decay of its own."""
    head_width: int
    """Channels of a head."""
    state_width: int
    """Numbers that each channel remembers."""
    num_groups: int = 1
    """Groups of heads that share what is written to and read from the state."""
    conv_width: int = 4
    """Tokens the short convolution sees."""
    conv_bias: bool = True
    """Whether the convolution shifts."""
    bias: bool = False
    """Whether the linears shift."""
    step_limit: tuple[float, float] = (0.0, math.inf)
    """Time steps are kept within these."""
    chunk: int = 64
    """Tokens read at once; changes speed, not results."""

    def __post_init__(self) -> None:
        for name in ("num_heads", "head_width", "state_width", "num_groups", "conv_width", "chunk"):
            if getattr(self, name) < 1:
                raise ModelError(
                    f"Model config: {name} is {getattr(self, name)}.", "It must be positive; is config.json whole?"
                )
        if self.num_heads % self.num_groups:
            raise ModelError(
                f"Model config: {self.num_heads} heads cannot be split into {self.num_groups} groups.",
                "The first must be a multiple of the second.",
            )

    @property
    def inner_width(self) -> int:
        """Channels of all heads."""
        return self.num_heads * self.head_width

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution: the heads, and what each group writes and reads with."""
        return self.inner_width + 2 * self.num_groups * self.state_width

    @property
    def state_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """What is remembered of a row."""
        return {
            "inputs": (self.conv_width - 1, self.conv_channels),
            "memory": (self.num_groups, self.state_width, self.inner_width // self.num_groups),
        }

    def make(self, width: int, norm: NormConfig, layer: int) -> nn.Module:
        """The layer for a residual stream of ``width``."""
        return Mamba2(self, width, norm, layer)


class Mamba2(nn.Module):
    """One linear makes gate, convolved channels and time steps; in the words of linear attention the input of a head is
    its value, B its key and C its query."""

    def __init__(self, config: Mamba2Config, width: int, norm: NormConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        self.parts = (config.inner_width, config.conv_channels, config.num_heads)
        self.into = Linear(width, sum(self.parts), bias=config.bias)
        self.convolution = ShortConvolution(config.conv_channels, config.conv_width, bias=config.conv_bias)
        steps = torch.exp(torch.empty(config.num_heads).uniform_(math.log(1e-3), math.log(0.1)))
        self.step_bias = nn.Parameter(steps + torch.log(-torch.expm1(-steps)))  # softplus of it is ``steps``
        self.log_rate = nn.Parameter(torch.empty(config.num_heads).uniform_(1.0, 16.0).log())
        self.skip = nn.Parameter(torch.ones(config.num_heads))
        self.norm = GatedNorm(config.inner_width, norm.epsilon, num_groups=config.num_groups, gate_first=True)
        self.out = Linear(config.inner_width, width, bias=config.bias)

    def forward(self, x: Tensor, places: Places, attend: Attend) -> Tensor:
        """(N, D) → (N, D)."""
        gate, mixed, steps = self.into(x).split(self.parts, dim=-1)
        y = along_rows(attend, self.layer, self._read, (mixed, steps), self.config.state_shapes)
        return self.out(self.norm(y.flatten(1), gate).to(x.dtype))

    def _read(self, parts: Sequence[Tensor], real: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Channels (B, T, C) and time steps (B, T, H) before their curves → (B, T, H, E) and the new state."""
        config = self.config
        mixed, inputs = self.convolution(parts[0], state["inputs"], real)
        state_width = config.num_groups * config.state_width
        v, k, q = mixed.split([config.inner_width, state_width, state_width], dim=-1)
        k, q = (part.unflatten(-1, (config.num_groups, -1)) for part in (k, q))
        v = v.unflatten(-1, (config.num_heads, -1))
        steps = nn.functional.softplus(parts[1] + self.step_bias).clamp(*config.step_limit)
        if real is not None:
            steps = steps * real.unsqueeze(-1)  # padding writes nothing and lets nothing fade
        decay, written = steps * -self.log_rate.to(v.dtype).exp(), v * steps.unsqueeze(-1)
        y, memory = recur(q, k, written, decay, state["memory"], chunk=config.chunk)
        return torch.addcmul(y, v, self.skip.to(v.dtype).unsqueeze(-1)), {"inputs": inputs, "memory": memory}
