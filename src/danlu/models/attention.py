"""Attention layers: they own projections and know no rows; who looks at whom is an ``Attend``'s say (attend.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from danlu.core.errors import ModelError
from danlu.models.linear import FusedLinear, Linear
from danlu.models.norms import NormConfig
from danlu.models.positions import RotaryConfig, rotate
from danlu.models.product import Rule

Project = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Makes keys and values (M, K, E) of a memory (M, D)."""
State = Mapping[str, Tensor]
"""What a recurrent layer remembers of each row, by name, (B, …)."""


@dataclass(frozen=True)
class Places:
    """Where the tokens of a batch stand; made once a pass and read by every layer."""

    positions: Tensor
    """(N,) place of each token in its row."""
    angles: Mapping[RotaryConfig, tuple[Tensor, Tensor]]
    """Cosines and sines of those places for each kind of rotary position in the stack, (N, 1, R)."""
    bias: Tensor | None = None
    """Relative-position bias of the scores: (H, T, S), or (B, H, T, S) while decoding."""


class Attend(Protocol):
    """Rows, masks and caches of one pass: what layers ask when tokens have to meet other tokens of their row."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule, bias: Tensor | None) -> Tensor:
        """Tokens look at their own row. q: (N, H, E); k, v: (N, K, E) → (N, H, E)."""
        ...

    def cross(self, layer: int, q: Tensor, project: Project, rule: Rule) -> Tensor:
        """Tokens look at the memory of their row."""
        ...

    def distances(self) -> Tensor:
        """Place of each key minus place of each query: (T, S), or (B, T, S) while decoding."""
        ...

    def row_lengths(self) -> Tensor:
        """How long the row of each token is, as far as it is known: (N,)."""
        ...

    def spread(self, x: Tensor) -> Tensor:
        """Rows side by side, padded on the right with copies of real tokens: (N, …) → (B, T, …)."""
        ...

    def pack(self, rows: Tensor) -> Tensor:
        """The inverse of ``spread``: (B, T, …) → (N, …)."""
        ...

    def real_tokens(self) -> Tensor | None:
        """Which tokens of spread rows are real: bool (B, T); None for all."""
        ...

    def state(self, layer: int) -> State | None:
        """What a recurrent layer remembers of these rows; None at their start."""
        ...

    def keep(self, layer: int, state: State) -> None:
        """Remember this for the rows' next tokens (nothing is kept where nothing follows)."""
        ...


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Softmax attention of one kind of layer."""

    num_heads: int
    """H: query heads."""
    num_kv_heads: int
    """K: key/value heads; H must be a multiple (Ainslie et al. 2023)."""
    head_width: int
    """E: size of one head."""
    causal: bool = True
    """Whether a token sees nothing after itself."""
    window: int | None = None
    """A token sees others fewer than this many places away; None for all."""
    scale: float | None = None
    """Scores are multiplied by this; None for 1 / √E."""
    softcap: float | None = None
    """Scores are squeezed into ± this."""
    bias: bool = False
    """Whether queries, keys and values shift."""
    out_bias: bool = False
    """Whether the output shifts."""
    qk_norm: Literal["head", "all"] | None = None
    """Queries and keys are normed head by head (Qwen3, Gemma 3) or over all heads at once (OLMo 2)."""
    gated: bool = False
    """Whether a sigmoid gate, made with the queries, scales the output (Qwen3-Next)."""
    rotary: RotaryConfig | None = None
    """Rotary positions."""
    dropout: float = 0.0
    """Share of weights dropped in training."""

    def __post_init__(self) -> None:
        for name in ("num_heads", "num_kv_heads", "head_width"):
            if getattr(self, name) < 1:
                raise ModelError(
                    f"Model config: {name} is {getattr(self, name)}.", "It must be positive; is config.json whole?"
                )
        if self.window is not None and (type(self.window) is not int or self.window < 1):
            raise ModelError(f"Model config: the window is {self.window!r}.", "It must be positive, or null for none.")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"Model config: {self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads.",
                "The first must be a multiple of the second.",
            )

    @property
    def rule(self) -> Rule:
        """How queries look at keys in inference."""
        scale = self.head_width**-0.5 if self.scale is None else self.scale
        return Rule(causal=self.causal, window=self.window, scale=scale, softcap=self.softcap)

    @property
    def state_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Attention keeps keys and values, no state."""
        return {}

    def make(self, width: int, norm: NormConfig, layer: int) -> nn.Module:
        """The layer for a residual stream of ``width``."""
        return Attention(self, width, norm, layer)


class _Attention(nn.Module):
    """What self- and cross-attention have in common."""

    def __init__(self, config: AttentionConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        self._rule = config.rule
        self._training_rule = replace(config.rule, dropout=config.dropout)

    @property
    def rule(self) -> Rule:
        return self._training_rule if self.training else self._rule


class Attention(_Attention):
    """Grouped-query self-attention. One linear makes queries, keys and values."""

    def __init__(self, config: AttentionConfig, width: int, norm: NormConfig, layer: int) -> None:
        super().__init__(config, layer)
        q_width, kv_width = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
        parts = (2 * q_width if config.gated else q_width, kv_width, kv_width)
        self.qkv = FusedLinear(width, parts, bias=config.bias)
        self.out = Linear(q_width, width, bias=config.out_bias)
        if config.qk_norm is not None:
            whole = config.qk_norm == "all"
            self.q_norm = norm.make(q_width if whole else config.head_width)
            self.k_norm = norm.make(kv_width if whole else config.head_width)

    def forward(self, x: Tensor, places: Places, attend: Attend) -> Tensor:
        """(N, D) → (N, D)."""
        config = self.config
        num_q, num_kv, width = config.num_heads, config.num_kv_heads, config.head_width
        heads = self.qkv(x)
        gate: Tensor | None = None
        if config.gated:
            first, rest = heads.split([2 * num_q * width, 2 * num_kv * width], dim=-1)
            q, gate = first.view(-1, num_q, 2 * width).chunk(2, dim=-1)
            heads = torch.cat([q, rest.view(-1, 2 * num_kv, width)], dim=1)
        heads = heads.view(x.shape[0], -1, width)  # (N, H+2K, E)
        qk, v = heads.split([num_q + num_kv, num_kv], dim=1)
        if config.qk_norm is not None:
            qk = self._normed(*qk.split([num_q, num_kv], dim=1))
        if config.rotary is not None:
            qk = rotate(qk, *places.angles[config.rotary])
        q, k = qk.split([num_q, num_kv], dim=1)
        mixed = attend(self.layer, q, k, v, self.rule, places.bias)  # (N, H, E)
        if gate is not None:
            mixed = mixed * torch.sigmoid(gate)
        return self.out(mixed.reshape(x.shape[0], -1))

    def _normed(self, q: Tensor, k: Tensor) -> Tensor:
        if self.config.qk_norm == "all":
            q, k = self.q_norm(q.flatten(1)).view_as(q), self.k_norm(k.flatten(1)).view_as(k)
        else:
            q, k = self.q_norm(q), self.k_norm(k)
        return torch.cat([q, k], dim=1)


class CrossAttention(_Attention):
    """Attention to the memory an encoder left: queries from here, keys and values from there."""

    def __init__(self, config: AttentionConfig, width: int, layer: int) -> None:
        super().__init__(config, layer)
        q_width, kv_width = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
        self.q = Linear(width, q_width, bias=config.bias)
        self.kv = FusedLinear(width, (kv_width, kv_width), bias=config.bias)
        self.out = Linear(q_width, width, bias=config.out_bias)

    def forward(self, x: Tensor, places: Places, attend: Attend) -> Tensor:
        """(N, D) → (N, D)."""
        q = self.q(x).view(x.shape[0], self.config.num_heads, -1)
        return self.out(attend.cross(self.layer, q, self.keys_values, self.rule).reshape(x.shape[0], -1))

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(M, D) → keys and values (M, K, E)."""
        k, v = self.kv(memory).view(memory.shape[0], 2, self.config.num_kv_heads, -1).unbind(dim=1)
        return k, v
