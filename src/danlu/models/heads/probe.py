"""The probe head: a learnt vector looks at all tokens of a row, and what it saw is the row's embedding.

Attention pooling as in SigLIP (Zhai et al. 2023), after the set transformer's (Lee et al. 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from danlu.models.attend import Memory, PackedAttend
from danlu.models.feedforward import ACTIVATIONS, Activation
from danlu.models.linear import FusedLinear, Linear
from danlu.models.norms import NormConfig
from danlu.models.product import Rule


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How hidden states become one vector."""

    num_heads: int
    """H: heads the probe looks with."""
    feedforward_width: int
    """F: inner size of the feed-forward layer behind it."""
    activation: Activation
    """Inside that layer."""
    norm: NormConfig
    """Before that layer."""
    normalise: bool = True
    """Whether vectors have length 1."""

    def make(self, width: int) -> ProbeHead:
        """The head of a stack of ``width``."""
        return ProbeHead(self, width)


class ProbeHead(nn.Module):
    """x = attention(probe, hidden); x + feedforward(norm(x))."""

    def __init__(self, config: ProbeConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.rule = Rule(causal=False, scale=(width // config.num_heads) ** -0.5)
        self.probe = nn.Parameter(torch.zeros(width))
        self.qkv = FusedLinear(width, (width, width, width), bias=True)
        self.out = Linear(width, width)
        self.norm = config.norm.make(width)
        self.activation = ACTIVATIONS[config.activation]
        self.up = Linear(width, config.feedforward_width)
        self.down = Linear(config.feedforward_width, width)

    def forward(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """hidden: (N, D), rows of ``lengths`` laid end to end → (B, D)."""
        num_rows, width = len(lengths), hidden.shape[1]
        heads = self.qkv(torch.cat([self.probe.unsqueeze(0), hidden]))
        heads = heads.view(-1, 3, self.config.num_heads, width // self.config.num_heads)
        q = heads[:1, 0].expand(num_rows, -1, -1)  # (B, H, E): one probe a row
        attend = PackedAttend([1] * num_rows, hidden.device, memory=Memory(hidden, tuple(lengths)))
        mixed = attend.cross(0, q, lambda memory: (heads[1:, 1], heads[1:, 2]), self.rule)
        x = self.out(mixed.reshape(num_rows, -1))
        x = x + self.down(self.activation(self.up(self.norm(x))))
        return nn.functional.normalize(x, dim=-1) if self.config.normalise else x


plugin = ProbeConfig
