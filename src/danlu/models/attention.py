"""Attention: the projections, and the three ways packed tokens look at each other.

``Attention`` owns weights and knows no rows. An ``Attend`` owns rows, masks and caches and knows no weights:

    PackedAttend    rows laid end to end, nothing cached        training, scoring
    PrefillAttend   new rows, laid end to end, filling a cache  reading prompts
    DecodeAttend    one new token for each cached row           writing answers
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from danlu.models.cache import KVCache
from danlu.models.config import CoreConfig
from danlu.models.positions import rotate


class Attend(Protocol):
    """Lets tokens look at each other. q: (N, H, E); k, v: (N, K, E) → (N, H, E)."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023). One linear makes queries, keys and values."""

    def __init__(self, config: CoreConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        self.head_width = config.head_width
        self.qkv = nn.Linear(config.width, sum(self.heads) * config.head_width, bias=False)
        self.out = nn.Linear(config.num_heads * config.head_width, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x: (N, D); cos, sin: (N, 1, E) → (N, D)."""
        num_q, num_k, num_v = self.heads
        heads = self.qkv(x).view(x.shape[0], -1, self.head_width)  # (N, H+2K, E)
        qk, v = heads.split([num_q + num_k, num_v], dim=1)
        q, k = rotate(qk, cos, sin).split([num_q, num_k], dim=1)
        mixed = attend(self.layer, q, k, v)  # (N, H, E)
        return self.out(mixed.reshape(x.shape[0], -1))


def row_positions(lengths: Sequence[int], shared: int = 0) -> Tensor:
    """Positions of rows laid end to end: [2, 3] → [0, 1, 0, 1, 2]. With ``shared`` tokens before all rows, which come
    first in the batch: 2 and [2, 1] → [0, 1, 2, 3, 2]. Shape (N,)."""
    parts = [torch.arange(shared), *(torch.arange(shared, shared + length) for length in lengths)]
    return torch.cat(parts)


_WORTH_SHARING = 8
"""Fewer equal first tokens are not worth a pass of their own."""


def shared_prefix(rows: Sequence[list[int]], longest: int | None = None) -> int:
    """How many first tokens rows can share: equal in all, at least one token left in each, at most ``longest``."""
    if len(rows) < 2:
        return 0
    low, high = min(rows), max(rows)  # the two that differ earliest, in dictionary order
    limit = min(*(len(row) - 1 for row in rows), len(low) if longest is None else longest)
    count = next((i for i in range(limit) if low[i] != high[i]), limit)
    return count if count >= _WORTH_SHARING else 0


class PackedAttend:
    """Causal attention inside each row of a packed batch; rows never see each other.

    Rows that begin with the same tokens may share them: the batch then starts with those ``shared`` tokens, computed
    once, and ``lengths`` count what follows in each row. The result is that of every row alone.

    Rows are laid side by side, padded on the right, for the product only: a causal mask already hides right padding
    from every real token, so no mask is needed. All linears still run on the N real tokens.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | None = None, shared: int = 0) -> None:
        self.lengths = list(lengths)
        self.shared = shared
        self.longest = max(self.lengths)
        starts = list(itertools.accumulate([0, *self.lengths[:-1]]))
        columns = torch.arange(self.longest)
        lengths_column = torch.tensor(self.lengths).unsqueeze(1)  # (B, 1)
        index = torch.tensor(starts).unsqueeze(1) + torch.minimum(columns, lengths_column - 1)  # (B, T)
        real = columns < lengths_column
        self.gather = index.flatten().to(device)  # (B·T,)
        self.scatter = real.flatten().nonzero().squeeze(1).to(device)  # (N,)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self.shared:
            return self._rows(q, k, v, None, None)
        parts = [x.split([self.shared, x.shape[0] - self.shared]) for x in (q, k, v)]
        (q_first, q_rest), (k_first, k_rest), (v_first, v_rest) = parts
        first = causal(q_first.unsqueeze(0), k_first.unsqueeze(0), v_first.unsqueeze(0)).squeeze(0)
        return torch.cat([first, self._rows(q_rest, k_rest, v_rest, k_first, v_first)])

    def _rows(self, q: Tensor, k: Tensor, v: Tensor, k_first: Tensor | None, v_first: Tensor | None) -> Tensor:
        q, k, v = (self._spread(x) for x in (q, k, v))  # (B, T, heads, E)
        if k_first is not None and v_first is not None:
            k, v = (
                torch.cat([first.expand(len(self.lengths), *first.shape), own], dim=1)
                for first, own in ((k_first, k), (v_first, v))
            )
        return causal(q, k, v).flatten(0, 1).index_select(0, self.scatter)  # (N, H, E)

    def _spread(self, x: Tensor) -> Tensor:
        return x.index_select(0, self.gather).view(len(self.lengths), self.longest, *x.shape[1:])


class PrefillAttend:
    """Reads new rows into rows ``first``… of a cache, which must be empty there; ``shared`` as in PackedAttend."""

    def __init__(self, cache: KVCache, first: int, lengths: Sequence[int], shared: int = 0) -> None:
        self._packed = PackedAttend(lengths, cache.device, shared)
        self._cache = cache
        self._first = first

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._cache.write_rows(layer, self._first, self._packed.lengths, self._packed.shared, k, v)
        return self._packed(layer, q, k, v)


class DecodeAttend:
    """One new token for each of rows 0…B-1 of a cache; ``lengths`` is how many tokens each row holds before it."""

    def __init__(self, cache: KVCache, lengths: Tensor) -> None:
        self._cache = cache
        self._lengths = lengths
        self._rows = torch.arange(lengths.shape[0], device=lengths.device)
        self._span = int(lengths.max()) + 1
        columns = torch.arange(self._span, device=lengths.device)
        hidden = columns.unsqueeze(0) > lengths.unsqueeze(1)  # (B, S)
        self._bias = torch.zeros(hidden.shape, dtype=cache.dtype, device=lengths.device)
        self._bias.masked_fill_(hidden, float("-inf"))
        self._bias = self._bias[:, None, None, :]  # (B, 1, 1, S)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Grouped matrix products, not SDPA: for one query a row SDPA is many times slower on a CPU, in bf16 above all.
        keys, values = self._cache.append(layer, self._rows, self._lengths, k, v, self._span)  # (B, K, S, E)
        rows, num_kv = k.shape[0], k.shape[1]
        grouped = q.view(rows, num_kv, -1, q.shape[-1]).to(keys.dtype)  # (B, K, H/K, E)
        scores = torch.matmul(grouped * grouped.shape[-1] ** -0.5, keys.transpose(-1, -2))  # (B, K, H/K, S)
        weights = torch.softmax(scores + self._bias, dim=-1)
        return torch.matmul(weights, values).reshape(q.shape).to(q.dtype)


_LONGEST_PRODUCT = 512
"""Rows up to here attend through plain matrix products. For short rows these beat SDPA's CPU kernel about four times
(bf16, forward and backward); beyond, the (T, T) table costs more memory than it saves time."""


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention; the last query stands at the last key. q: (B, T, H, E); k, v: (B, S, K, E) → (B, T, H, E)."""
    rows, length, num_q, width = q.shape
    span, num_kv = k.shape[1], k.shape[2]
    if max(length, span) > _LONGEST_PRODUCT or q.device.type != "cpu":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, heads, T, E)
        if span == length:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            seen = torch.ones(length, span, dtype=torch.bool, device=q.device).tril_(span - length)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
        return mixed.transpose(1, 2)
    group = num_q // num_kv
    queries = q.reshape(rows, length, num_kv, group, width).permute(0, 2, 3, 1, 4)  # (B, K, H/K, T, E)
    queries = queries.reshape(rows * num_kv, group * length, width)
    keys = k.permute(0, 2, 3, 1).reshape(rows * num_kv, width, span)  # (B·K, E, S)
    values = v.permute(0, 2, 1, 3).reshape(rows * num_kv, span, width)  # (B·K, S, E)
    later = torch.full((length, span), float("-inf")).triu_(1 + span - length)
    scores = torch.bmm(queries, keys).view(-1, group, length, span).float() * width**-0.5 + later
    weights = torch.softmax(scores, dim=-1).to(q.dtype).view(rows * num_kv, group * length, span)
    mixed = torch.bmm(weights, values).view(rows, num_kv, group, length, width)
    return mixed.permute(0, 3, 1, 2, 4).reshape(q.shape)  # (B, T, H, E)
