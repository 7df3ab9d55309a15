"""Keys and values of the tokens already read, so that each new token costs one step.

Rows are dense: rows 0…B-1 are in use, and a finished row is replaced by the last one. So a step never gathers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from danlu.models.config import CoreConfig


class KVCache:
    """``num_rows`` rows of at most ``num_tokens`` tokens. Storage (layers, B, K, S, E) for keys and for values."""

    def __init__(
        self, config: CoreConfig, num_rows: int, num_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.num_layers, num_rows, config.num_kv_heads, num_tokens, config.head_width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.dtype = dtype
        self.device = device

    @property
    def num_rows(self) -> int:
        """Rows there is room for."""
        return self.keys.shape[1]

    @property
    def num_tokens(self) -> int:
        """Tokens each row has room for."""
        return self.keys.shape[3]

    def write_rows(self, layer: int, first: int, lengths: Sequence[int], shared: int, k: Tensor, v: Tensor) -> None:
        """Fill rows first… from their start. k, v: (N, K, E), ``shared`` tokens of all rows, then rows end to end."""
        ends = list(itertools.accumulate(lengths, initial=shared))[1:]
        for cache, new in ((self.keys[layer], k), (self.values[layer], v)):
            cache[first : first + len(lengths), :, :shared] = new[:shared].transpose(0, 1)
            for row, (length, end) in enumerate(zip(lengths, ends, strict=True), start=first):
                cache[row, :, shared : shared + length] = new[end - length : end].transpose(0, 1)

    def append(
        self, layer: int, rows: Tensor, lengths: Tensor, k: Tensor, v: Tensor, span: int
    ) -> tuple[Tensor, Tensor]:
        """Put one token after each row; returns the first ``span`` keys and values of those rows, (B, K, S, E)."""
        keys, values = self.keys[layer], self.values[layer]
        keys[rows, :, lengths] = k.to(self.dtype)
        values[rows, :, lengths] = v.to(self.dtype)
        return keys[: rows.shape[0], :, :span], values[: rows.shape[0], :, :span]

    def move_row(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of one row over another."""
        self.keys[:, target, :, :length] = self.keys[:, source, :, :length]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]

    def grown(self, num_rows: int, num_tokens: int) -> KVCache:
        """A larger cache with the same content."""
        layers, _, heads, _, width = self.keys.shape
        larger = KVCache.__new__(KVCache)
        larger.dtype, larger.device = self.dtype, self.device
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = torch.zeros((layers, num_rows, heads, num_tokens, width), dtype=self.dtype, device=self.device)
            new[:, : old.shape[1], :, : old.shape[3]] = old
            setattr(larger, name, new)
        return larger
