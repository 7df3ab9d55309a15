"""Rows of a cache and the two things a step does with them: read new prompts, write one token each.

Rows are dense: a finished row is replaced by the last one, so decoding never gathers. Knows no queue and no client.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from danlu.models.attend import DecodeAttend
from danlu.models.cache import KVCache
from danlu.models.decoding import read_prompts
from danlu.models.model import Model
from danlu.models.sampling import pick_tokens
from danlu.models.writing import Writing

_CACHE_STEP = 256
"""The cache grows by this many tokens a row."""


class Runner:
    """Generates for the rows it holds. Not thread-safe: one thread owns it."""

    def __init__(self, model: Model, max_rows: int, cache_tokens: int) -> None:
        self._model = model
        self._device = model.device
        self._max_rows = max_rows
        self._cache_tokens = cache_tokens
        self._cache: KVCache | None = None
        self.rows: list[Writing] = []

    def fits(self, newcomers: Sequence[Writing]) -> bool:
        """Whether these can join now: rows, and rows times the longest that any row may become."""
        rows = [*self.rows, *newcomers]
        longest = max((_most_tokens(w) for w in rows), default=0)
        return len(rows) <= self._max_rows and (len(rows) * longest <= self._cache_tokens or len(rows) == 1)

    @property
    def cache_usage(self) -> float:
        """Share of the cache's tokens in use, 0 to 1."""
        return min(1.0, sum(w.num_tokens for w in self.rows) / self._cache_tokens)

    @torch.inference_mode()
    def prefill(self, newcomers: Sequence[Writing]) -> list[int]:
        """Read their prompts in one packed pass; returns their first tokens. They become the last rows."""
        first = len(self.rows)
        cache = self._cache_for([*self.rows, *newcomers])
        hidden = read_prompts(self._model.network, [w.prompt_ids for w in newcomers], cache, first)
        self.rows += newcomers
        return self._pick(hidden, newcomers)

    @torch.inference_mode()
    def decode(self) -> list[int]:
        """Feed every row its newest token; returns the next one of each."""
        cache = self._cache_for(self.rows)
        ids = torch.tensor([w.token_ids[-1] for w in self.rows], device=self._device)
        lengths = torch.tensor([w.num_tokens - 1 for w in self.rows], device=self._device)
        hidden = self._model.network(ids, lengths, DecodeAttend(cache, lengths))
        return self._pick(hidden, self.rows)

    @torch.inference_mode()
    def drop_finished(self) -> None:
        """Free the rows whose answer is complete."""
        row = 0
        while row < len(self.rows):
            if self.rows[row].finish_reason is None:
                row += 1
                continue
            last = len(self.rows) - 1
            if row != last and self._cache is not None:
                self._cache.move_row(last, row, self.rows[last].num_tokens)
            self.rows[row] = self.rows[last]
            self.rows.pop()
        if not self.rows:
            self._cache = None

    def clear(self) -> None:
        """Forget everything."""
        self.rows = []
        self._cache = None

    def _pick(self, hidden: Tensor, writings: Sequence[Writing]) -> list[int]:
        return pick_tokens(self._model.network.logits(hidden), writings)

    def _cache_for(self, rows: Sequence[Writing]) -> KVCache:
        """The cache, grown when these rows need more room than it has."""
        tokens = max(w.num_tokens for w in rows) + 1
        tokens = -(-tokens // _CACHE_STEP) * _CACHE_STEP
        if self._cache is None:
            dtype = self._model.activation_dtype
            self._cache = KVCache(self._model.stack_config, len(rows), tokens, dtype, self._device)
        elif self._cache.num_rows < len(rows) or self._cache.num_tokens < tokens:
            num_rows = min(self._max_rows, max(len(rows), 2 * self._cache.num_rows))
            num_rows = self._cache.num_rows if self._cache.num_rows >= len(rows) else num_rows
            self._cache = self._cache.grown(num_rows, max(tokens, self._cache.num_tokens))
        return self._cache


def _most_tokens(writing: Writing) -> int:
    return len(writing.prompt_ids) + writing.limit
