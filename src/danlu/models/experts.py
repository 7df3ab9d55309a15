"""Experts: feed-forward layers of which each token goes through a few, chosen by a router (Shazeer et al. 2017).

Knows no family. The products over experts are in grouped.py, the losses that keep routers in balance in routing.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from danlu.core.errors import ModelError
from danlu.models.feedforward import ACTIVATIONS, Activation, FeedForwardConfig
from danlu.models.grouped import GroupedLinear, group_items

if TYPE_CHECKING:
    from danlu.models.attention import Attend, Places


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """A feed-forward layer made of experts."""

    num_experts: int
    """X: experts of the layer."""
    top_k: int
    """Experts that each token goes through."""
    width: int
    """F: inner size of one expert."""
    activation: Activation = "silu"
    """Between the two products."""
    gated: bool = True
    """Whether a second product gates the first (Shazeer 2020)."""
    bias: bool = False
    """Whether the linears of experts shift."""
    normalise: bool = False
    """Whether the weights of a token's experts are made to sum to 1."""
    shared_width: int | None = None
    """Inner size of an expert that every token goes through; None for none."""
    shared_gate: bool = False
    """Whether a sigmoid gate scales what the shared expert says."""
    capacity: int | None = None
    """Tokens of one row that an expert takes, the first ones; the rest pass by (Fedus et al. 2021). None for all."""
    router_bias: bool = False
    """Whether the router shifts."""
    router_fp32: bool = False
    """Whether the router works in fp32 whatever the type of its input."""
    dropout: float = 0.0
    """Share of the inner values of experts dropped in training."""
    jitter: float = 0.0
    """In training, the router's input is multiplied by noise from 1 - jitter to 1 + jitter."""

    def __post_init__(self) -> None:
        for name in ("num_experts", "top_k", "width"):
            if getattr(self, name) < 1:
                raise ModelError(
                    f"Model config: {name} is {getattr(self, name)}.", "It must be positive; is config.json whole?"
                )
        if self.top_k > self.num_experts:
            raise ModelError(
                f"Model config: each token goes through {self.top_k} of {self.num_experts} experts.",
                "The first must not be larger.",
            )
        if self.capacity is not None and self.capacity < 1:
            raise ModelError(f"Model config: capacity is {self.capacity}.", "Use 1 or more, or null for no limit.")

    def make(self, width: int) -> nn.Module:
        """The layer for a residual stream of ``width``."""
        return Experts(self, width)


class Router(nn.Module):
    """A linear that stays in plain numbers: neither quantised nor adapted."""

    bias: Tensor | None

    def __init__(self, width: int, num_outputs: int, *, bias: bool = False, fp32: bool = False) -> None:
        super().__init__()
        self.fp32 = fp32
        self.weight = nn.Parameter(torch.empty(num_outputs, width))
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_outputs)) if bias else None)
        bound = 1.0 / math.sqrt(width)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) → logits (N, X), fp32 or in the type of ``x``."""
        dtype = torch.float32 if self.fp32 else x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return nn.functional.linear(x.to(dtype), self.weight.to(dtype), bias)


class Experts(nn.Module):
    """Σ w · expert(x) over the ``top_k`` experts of each token; w are the router's probabilities, taken in fp32."""

    def __init__(self, config: ExpertsConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.activation = ACTIVATIONS[config.activation]
        self.router = Router(width, config.num_experts, bias=config.router_bias, fp32=config.router_fp32)
        parts = (config.width, config.width) if config.gated else (config.width,)
        into = GroupedLinear(config.num_experts, width, parts, bias=config.bias)
        if config.gated:
            self.gate_up = into
        else:
            self.up = into
        self.down = GroupedLinear(config.num_experts, config.width, (width,), bias=config.bias)
        self.shared = self.shared_gate = None
        if config.shared_width is not None:
            shared = FeedForwardConfig(
                width=config.shared_width,
                activation=config.activation,
                gated=config.gated,
                bias=config.bias,
                dropout=config.dropout,
            )
            self.shared = shared.make(width)
            self.shared_gate = Router(width, 1) if config.shared_gate else None

    def forward(self, x: Tensor, places: Places, attend: Attend) -> Tensor:
        """(N, D) → (N, D)."""
        weights, chosen = self._route(x)  # (N, k) each
        if self.config.capacity is not None:
            fits = self._turns(chosen, attend) <= self.config.capacity
            weights, chosen = weights * fits, chosen.masked_fill(~fits, self.config.num_experts)
        groups = group_items(chosen.flatten(), self.config.num_experts)
        inner = x.index_select(0, groups.source // self.config.top_k)  # (S, D), sorted by expert
        if self.config.gated:
            gate, up = self.gate_up(inner, groups).chunk(2, dim=-1)
            inner = self.activation(gate) * up
        else:
            inner = self.activation(self.up(inner, groups))
        if self.config.dropout and self.training:
            inner = nn.functional.dropout(inner, self.config.dropout)
        y = self.down(inner, groups).index_select(0, groups.place)  # (N·k, D), sorted by token again
        y = torch.bmm(weights.to(y.dtype).unsqueeze(1), y.view(*chosen.shape, -1)).squeeze(1)
        if self.shared is None:
            return y
        shared = self.shared(x, places, attend)
        return y + (shared if self.shared_gate is None else torch.sigmoid(self.shared_gate(x)) * shared)

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) → weights and indices of each token's experts, best first: (N, k)."""
        jitter = self.config.jitter
        if self.training and jitter:
            x = x * torch.empty_like(x).uniform_(1.0 - jitter, 1.0 + jitter)
        weights, chosen = torch.softmax(self.router(x), dim=-1, dtype=torch.float32).topk(self.config.top_k, dim=-1)
        return weights / weights.sum(dim=-1, keepdim=True) if self.config.normalise else weights, chosen

    def _turns(self, chosen: Tensor, attend: Attend) -> Tensor:
        """How many choices of a row went to an expert up to and with each one: (N, k) → (N, k)."""
        rows = attend.spread(chosen)  # (B, T, k)
        asked = nn.functional.one_hot(rows.flatten(1), self.config.num_experts).cumsum(dim=1)  # (B, T·k, X)
        return attend.pack(asked.gather(2, rows.flatten(1).unsqueeze(2)).view(rows.shape))
