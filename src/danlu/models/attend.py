"""Rows laid end to end that are read whole, nothing kept: training, scoring, encoding.

An ``Attend`` owns rows and masks and knows no weights. Its other kind, which goes on from what was read before, is in
paged.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.models.attention import Project, State
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
