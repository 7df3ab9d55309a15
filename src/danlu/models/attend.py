"""The three ways packed tokens look at each other. An ``Attend`` owns rows, masks and caches and knows no weights:

PackedAttend    rows laid end to end, nothing cached        training, scoring, encoding
PrefillAttend   new rows, laid end to end, filling a cache  reading prompts
DecodeAttend    a few new tokens for each cached row        writing answers
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.models.attention import Project, State
from danlu.models.cache import KVCache
from danlu.models.product import Rule, mix, visible

_WORTH_SHARING = 8
"""Fewer equal first tokens are not worth a pass of their own."""


def row_positions(lengths: Sequence[int], shared: int = 0) -> Tensor:
    """Positions of rows laid end to end: [2, 3] → [0, 1, 0, 1, 2]. With ``shared`` tokens before all rows, which come
    first in the batch: 2 and [2, 1] → [0, 1, 2, 3, 2]. Shape (N,)."""
    parts = [torch.arange(shared), *(torch.arange(shared, shared + length) for length in lengths)]
    return torch.cat(parts)


def shared_prefix(rows: Sequence[list[int]], longest: int | None = None) -> int:
    """How many first tokens rows can share: equal in all, at least one token left in each, at most ``longest``."""
    if len(rows) < 2:
        return 0
    low, high = min(rows), max(rows)  # the two that differ earliest, in dictionary order
    limit = min(*(len(row) - 1 for row in rows), len(low) if longest is None else longest)
    count = next((i for i in range(limit) if low[i] != high[i]), limit)
    return count if count >= _WORTH_SHARING else 0


class Layout:
    """Rows laid end to end and the same rows side by side, padded on the right with their last token."""

    def __init__(self, lengths: Sequence[int], device: torch.device | None = None) -> None:
        self.lengths = list(lengths)
        self.longest = max(self.lengths)
        self.is_even = min(self.lengths) == self.longest
        if self.is_even:
            return
        starts = list(itertools.accumulate([0, *self.lengths[:-1]]))
        columns = torch.arange(self.longest)
        lengths_column = torch.tensor(self.lengths).unsqueeze(1)  # (B, 1)
        index = torch.tensor(starts).unsqueeze(1) + torch.minimum(columns, lengths_column - 1)  # (B, T)
        self.real = (columns < lengths_column).to(device)  # (B, T)
        self._gather = index.flatten().to(device)  # (B·T,)
        self._scatter = self.real.flatten().nonzero().squeeze(1)  # (N,)

    def spread(self, x: Tensor) -> Tensor:
        """(N, …) → (B, T, …)."""
        if not self.is_even:
            x = x.index_select(0, self._gather)
        return x.view(len(self.lengths), self.longest, *x.shape[1:])

    def pack(self, rows: Tensor) -> Tensor:
        """(B, T, …) → (N, …)."""
        flat = rows.flatten(0, 1)
        return flat if self.is_even else flat.index_select(0, self._scatter)


@dataclass(frozen=True)
class Memory:
    """What an encoder made of the rows a decoder looks back at."""

    hidden: Tensor
    """(M, D), rows laid end to end."""
    lengths: tuple[int, ...]
    """Tokens of each row."""


class PackedAttend:
    """Attention inside each row of a packed batch; rows never see each other.

    Rows that begin with the same tokens may share them: the batch then starts with those ``shared`` tokens, computed
    once, and ``lengths`` count what follows in each row. The result is that of every row alone. Only causal stacks may
    share. Rows are laid side by side for the product only; all linears run on the N real tokens.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        device: torch.device | None = None,
        shared: int = 0,
        memory: Memory | None = None,
    ) -> None:
        self.layout = Layout(lengths, device)
        self.lengths = self.layout.lengths
        self.shared = shared
        self._device = device or torch.device("cpu")
        self._masks: dict[tuple[Rule, range, range], Tensor | None] = {}
        self._memory = memory
        self._memory_layout = None if memory is None else Layout(memory.lengths, device)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule, bias: Tensor | None) -> Tensor:
        if not self.shared:
            q, k, v = (self.layout.spread(x) for x in (q, k, v))  # (B, T, heads, E)
            return self.layout.pack(mix(q, k, v, rule, self._mask_of(rule), bias))
        assert rule.causal, "only causal rows can share their first tokens"
        rest = q.shape[0] - self.shared
        (q_first, q), (k_first, k), (v_first, v) = (x.split([self.shared, rest]) for x in (q, k, v))
        begin = None if bias is None else bias[:, : self.shared, : self.shared]
        mask = self._mask_of(rule)
        first = mix(q_first.unsqueeze(0), k_first.unsqueeze(0), v_first.unsqueeze(0), rule, mask, begin)
        rows = mix(
            self.layout.spread(q),
            self._after(k_first, k),
            self._after(v_first, v),
            rule,
            mask,
            None if bias is None else bias[:, self.shared :],
        )
        return torch.cat([first.squeeze(0), self.layout.pack(rows)])

    def _after(self, first: Tensor, rest: Tensor) -> Tensor:
        """Rows side by side, each with the shared tokens before it: (B, shared + T, …)."""
        return torch.cat([first.expand(len(self.lengths), *first.shape), self.layout.spread(rest)], dim=1)

    def _mask_of(self, rule: Rule) -> Callable[[range, range], Tensor | None]:
        """Masks are the same in every layer, so each is made once."""
        padded = not (rule.causal or self.layout.is_even)
        lengths = torch.tensor(self.lengths) if padded else None

        def mask(queries: range, keys: range) -> Tensor | None:
            key = (rule, queries, keys)
            if key not in self._masks:
                self._masks[key] = visible(rule, queries, keys, lengths, self._device)
            return self._masks[key]

        return mask

    def cross(self, layer: int, q: Tensor, project: Project, rule: Rule) -> Tensor:
        k, v = self.remember(layer, project)
        assert self._memory_layout is not None
        lengths = None if self._memory_layout.is_even else torch.tensor(self._memory_layout.lengths)

        def mask(queries: range, keys: range) -> Tensor | None:
            if lengths is None:
                return None
            real = torch.arange(keys.start, keys.stop) < lengths.unsqueeze(1)  # (B, S)
            return real[:, None, None, :].expand(-1, 1, len(queries), -1).to(self._device)

        return self.layout.pack(mix(self.layout.spread(q), k, v, rule, mask))

    def remember(self, layer: int, project: Project) -> tuple[Tensor, Tensor]:
        """Keys and values of the memory, rows side by side: (B, S, K, E)."""
        assert self._memory is not None, "a decoder with cross-attention needs a memory"
        assert self._memory_layout is not None
        k, v = project(self._memory.hidden)
        return self._memory_layout.spread(k), self._memory_layout.spread(v)

    def distances(self) -> Tensor:
        places = torch.arange(self.shared + self.layout.longest, device=self._device)
        return places.unsqueeze(0) - places.unsqueeze(1)  # (T, S)

    def row_lengths(self) -> Tensor:
        lengths = torch.tensor(self.lengths, device=self._device) + self.shared
        first = lengths.max().expand(self.shared)
        return torch.cat([first, torch.repeat_interleave(lengths, lengths - self.shared)])

    def spread(self, x: Tensor) -> Tensor:
        return self.layout.spread(x) if not self.shared else self._after(x[: self.shared], x[self.shared :])

    def pack(self, rows: Tensor) -> Tensor:
        if not self.shared:
            return self.layout.pack(rows)
        return torch.cat([rows[0, : self.shared], self.layout.pack(rows[:, self.shared :])])

    def real_tokens(self) -> Tensor | None:
        if self.layout.is_even:
            return None
        return torch.nn.functional.pad(self.layout.real, (self.shared, 0), value=True)

    def state(self, layer: int) -> State | None:
        return None

    def keep(self, layer: int, state: State) -> None:
        """Nothing follows."""


class PrefillAttend(PackedAttend):
    """Reads new rows into rows ``first``… of a cache, which must be empty there; ``shared`` as in PackedAttend."""

    def __init__(
        self, cache: KVCache, first: int, lengths: Sequence[int], shared: int = 0, memory: Memory | None = None
    ) -> None:
        super().__init__(lengths, cache.device, shared, memory)
        self._cache = cache
        self._first = first
        if memory is not None:
            cache.expect_memory(first, memory.lengths)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule, bias: Tensor | None) -> Tensor:
        self._cache.write_rows(layer, self._first, self.lengths, self.shared, k, v)
        return super().__call__(layer, q, k, v, rule, bias)

    def remember(self, layer: int, project: Project) -> tuple[Tensor, Tensor]:
        k, v = super().remember(layer, project)
        self._cache.write_memory(layer, self._first, k, v)
        return k, v

    def keep(self, layer: int, state: State) -> None:
        self._cache.write_state(layer, self._first, state)


class DecodeAttend:
    """``num_new`` new tokens for each of rows 0…B-1 of a cache, rows laid end to end.

    ``lengths`` (B,) is how many tokens each row holds before them.
    """

    def __init__(self, cache: KVCache, lengths: Tensor, num_new: int = 1) -> None:
        self._cache = cache
        self._num_new = num_new
        self._rows = lengths.shape[0]
        self._places = lengths.unsqueeze(1) + torch.arange(num_new, device=lengths.device)  # (B, T)
        shortest, longest = int(lengths.min()), int(lengths.max())
        self._span = longest + num_new
        self._start = longest if shortest == longest else None  # one place for all rows: a slice, not an index
        self._masks: dict[Rule, Tensor | None] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule, bias: Tensor | None) -> Tensor:
        k, v = (x.view(self._rows, self._num_new, *x.shape[1:]) for x in (k, v))
        keys, values = self._cache.append(layer, self._places, k, v, self._span, self._start)  # (B, K, S, E)
        if rule not in self._masks:
            self._masks[rule] = self._mask(rule)
        mask = self._masks[rule]
        if bias is not None:
            mask = bias if mask is None else mask + bias
        return self._product(q, keys, values, rule, mask)

    def _mask(self, rule: Rule) -> Tensor | None:
        """What new tokens do not see is -inf: (B, 1, T, S), in the cache's own type; None when they see all."""
        windowed = rule.window is not None and rule.window < self._span
        if self._num_new == 1 and self._start is not None and not windowed:
            return None
        columns = torch.arange(self._span, device=self._places.device)
        places = self._places.unsqueeze(-1)  # (B, T, 1)
        hidden = columns > places
        if rule.window is not None:
            hidden |= columns <= places - rule.window
        mask = torch.zeros(hidden.shape, dtype=self._cache.dtype, device=hidden.device)
        return mask.masked_fill_(hidden, float("-inf")).unsqueeze(1)

    def _product(self, q: Tensor, keys: Tensor, values: Tensor, rule: Rule, mask: Tensor | None) -> Tensor:
        """q: (B·T, H, E); keys, values: (B, K, S, E) → (B·T, H, E)."""
        num_q, num_kv, span = q.shape[1], keys.shape[1], keys.shape[2]
        new, pairs = self._num_new, self._rows * num_kv
        if new == 1 and rule.softcap is None and _is_fused_faster(keys, num_q):
            seen = mask if mask is None or mask.shape[1] == 1 else mask.view(-1, num_kv, num_q // num_kv, span)
            rows = q.to(keys.dtype).view(
                self._rows, num_kv, -1, q.shape[2]
            )  # query heads of a key: rows of one product
            mixed = torch.nn.functional.scaled_dot_product_attention(
                rows, keys, values, attn_mask=seen, scale=rule.scale
            )
            return mixed.reshape(q.shape).to(q.dtype)
        queries = (q * rule.scale).to(keys.dtype).view(self._rows, new, num_kv, num_q // num_kv, -1)
        queries = queries.permute(0, 2, 3, 1, 4).reshape(pairs, -1, keys.shape[3])  # (B·K, H/K·T, E)
        scores = _few_scores(queries, keys.flatten(0, 1))  # (B·K, H/K·T, S)
        if rule.softcap is not None:
            scores = rule.softcap * torch.tanh(scores / rule.softcap)
        if mask is not None:
            scores = (scores.reshape(self._rows, num_q, new, span) + mask).view(scores.shape)
        mixed = torch.bmm(torch.softmax(scores, dim=-1), values.flatten(0, 1))  # (B·K, H/K·T, E)
        mixed = mixed.view(self._rows, num_q, new, -1).transpose(1, 2)
        return mixed.reshape(q.shape[0], num_q, -1).to(q.dtype)

    def cross(self, layer: int, q: Tensor, project: Project, rule: Rule) -> Tensor:
        keys, values, mask = self._cache.memory(layer, self._rows)
        return self._product(q, keys, values, rule, mask)

    def distances(self) -> Tensor:
        columns = torch.arange(self._span, device=self._places.device)
        return columns - self._places.unsqueeze(-1)  # (B, T, S)

    def row_lengths(self) -> Tensor:
        return (self._places[:, -1:] + 1).expand(-1, self._num_new).flatten()

    def spread(self, x: Tensor) -> Tensor:
        return x.view(self._rows, self._num_new, *x.shape[1:])

    def pack(self, rows: Tensor) -> Tensor:
        return rows.flatten(0, 1)

    def real_tokens(self) -> Tensor | None:
        return None

    def state(self, layer: int) -> State | None:
        return self._cache.state(layer, self._rows)

    def keep(self, layer: int, state: State) -> None:
        self._cache.write_state(layer, 0, state)


def _is_fused_faster(keys: Tensor, num_q: int) -> bool:
    """Whether torch's fused kernel beats plain products for one query a row; the number of rows must not decide, or an
    answer would depend on its batch. In bf16 on a CPU it loses when every query head has keys of its own."""
    return keys.device.type != "cpu" or keys.dtype == torch.float32 or num_q > keys.shape[1]


def _few_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """queries · keysᵀ for few queries: (P, G, E), (P, S, E) → (P, G, S).

    In bf16 on a CPU the product is up to four times faster the other way round.
    """
    if keys.dtype == torch.float32 or keys.device.type != "cpu":
        return torch.bmm(queries, keys.transpose(1, 2))
    return torch.bmm(keys, queries.transpose(1, 2)).transpose(1, 2)
