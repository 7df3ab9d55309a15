"""The endless sequences of one source: which tokens number n has, epoch after epoch, each shuffled by its own key.

Chunked: all tokens end to end, cut every T; any number is found at once. Packed: documents in the epoch's order,
best-fit within windows of about 256 sequences; how many sequences a window gives is known when it is packed, so a
number is found by walking there from the last one (or from a bookmark), packing lengths only. Knows no batches or
ranks, and reads no token.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from danlu.core.errors import ConfigError, DataError
from danlu.data.packing import Piece, pack_documents
from danlu.data.permutation import Permutation, mix
from danlu.data.shards import Integers, TokenShards

Span = tuple[int, int]
"""First token and one past the last, counted over all shards."""
Keys = tuple[int, ...]

_WINDOW_SEQUENCES = 256
_FEWEST_DOCUMENTS = 64
_BLOCK = 4096
"""Places of the epoch's order that are computed at once."""
_KEPT_WINDOWS = 3
"""Packed windows in memory: a batch may span two, and its ranks may be asked for in turn."""


class Sequences(Protocol):
    """Where the tokens of sequence n are."""

    shards: TokenShards

    def at(self, number: int) -> tuple[list[Span], Integers]:
        """The spans to lay end to end, and the lengths of the rows in them."""
        ...

    def per_epoch(self) -> int:
        """Sequences of the first epoch; packed, others may have a few more or less."""
        ...

    def bookmark(self) -> list[int]:
        """What lets ``open_at`` find this place without walking there."""
        ...

    def open_at(self, bookmark: Any) -> None:
        """Start near a bookmark. ConfigError when it is not one."""
        ...


class ChunkedSequences:
    """Equal cuts of all tokens end to end; the last tokens of an epoch, fewer than a sequence, are left out."""

    def __init__(
        self, shards: TokenShards, sequence_length: int, keys: Keys, is_shuffled: bool, is_joined: bool
    ) -> None:
        self.shards = shards
        self._length, self._keys = sequence_length, keys
        self._is_shuffled, self._is_joined = is_shuffled, is_joined
        self._count = shards.num_tokens // sequence_length
        if not self._count:
            raise DataError(
                f"{shards.folder} has {shards.num_tokens} tokens, less than one sequence of {sequence_length}.",
                "Give more text, or a smaller sequence_length.",
            )
        self._whole = np.array([sequence_length], np.int64)
        self._order: tuple[int, int, Integers] | None = None  # epoch, first place, items

    def at(self, number: int) -> tuple[list[Span], Integers]:
        """See ``Sequences``."""
        epoch, place = divmod(number, self._count)
        start = self._item(epoch, place) * self._length
        stop = start + self._length
        return [(start, stop)], self._whole if self._is_joined else self.shards.lengths_between(start, stop)

    def per_epoch(self) -> int:
        """See ``Sequences``."""
        return self._count

    def bookmark(self) -> list[int]:
        """Nothing is needed: any place is found at once."""
        return []

    def open_at(self, bookmark: Any) -> None:
        """See ``Sequences``."""
        if bookmark != []:
            raise _damaged(bookmark)

    def _item(self, epoch: int, place: int) -> int:
        if not self._is_shuffled:
            return place
        first = place - place % _BLOCK
        if self._order is None or self._order[:2] != (epoch, first):
            permutation = Permutation(self._count, *self._keys, epoch)
            self._order = epoch, first, permutation.at(first, min(first + _BLOCK, self._count))
        return int(self._order[2][place - first])


@dataclass(frozen=True)
class _Window:
    """Documents packed together."""

    epoch: int
    number: int
    """Windows of the epoch before it."""
    first: int
    """Number of its first sequence, over all epochs."""
    sequences: list[list[Piece]]
    """Pieces of each sequence; a piece's document is a place in ``starts``."""
    starts: Integers
    """First token of each document."""

    @property
    def end(self) -> int:
        """Number of the next window's first sequence."""
        return self.first + len(self.sequences)


class PackedSequences:
    """Documents best-fit into sequences; none is cut that fits one."""

    def __init__(self, shards: TokenShards, sequence_length: int, keys: Keys, is_shuffled: bool) -> None:
        if not shards.num_documents:
            raise DataError(f"{shards.folder} has no documents.", "Give more text, or hold out less of it.")
        self.shards = shards
        self._length, self._keys, self._is_shuffled = sequence_length, keys, is_shuffled
        mean = shards.num_tokens / shards.num_documents
        self._window_documents = max(_FEWEST_DOCUMENTS, round(_WINDOW_SEQUENCES * sequence_length / mean))
        self._windows_per_epoch = -(-shards.num_documents // self._window_documents)
        self._kept: deque[_Window] = deque(maxlen=_KEPT_WINDOWS)
        self._opened = (0, 0, 0)

    def at(self, number: int) -> tuple[list[Span], Integers]:
        """See ``Sequences``."""
        window = self._find(number)
        pieces = window.sequences[number - window.first]
        starts = window.starts
        spans = [(int(starts[p.document]) + p.start, int(starts[p.document]) + p.stop) for p in pieces]
        return spans, np.array([stop - start for start, stop in spans], np.int64)

    def per_epoch(self) -> int:
        """See ``Sequences``. Packs the lengths of a whole epoch."""
        return sum(len(self._pack(0, number, 0).sequences) for number in range(self._windows_per_epoch))

    def bookmark(self) -> list[int]:
        """Epoch, window and first sequence of the oldest window in memory."""
        if not self._kept:
            return list(self._opened)
        return [self._kept[0].epoch, self._kept[0].number, self._kept[0].first]

    def open_at(self, bookmark: Any) -> None:
        """See ``Sequences``."""
        is_right = isinstance(bookmark, list) and len(bookmark) == 3
        if not is_right or any(type(n) is not int or n < 0 for n in bookmark):
            raise _damaged(bookmark)
        self._kept.clear()
        self._opened = (bookmark[0], bookmark[1], bookmark[2])

    def _find(self, number: int) -> _Window:
        """The window with sequence ``number``, walking forward to it."""
        for window in self._kept:
            if window.first <= number < window.end:
                return window
        if not self._kept or number < self._kept[0].first:
            self._kept.clear()
            self._kept.append(self._pack(*(self._opened if number >= self._opened[2] else (0, 0, 0))))
        while number >= self._kept[-1].end:
            last = self._kept[-1]
            is_last = last.number + 1 == self._windows_per_epoch
            epoch, next_number = (last.epoch + 1, 0) if is_last else (last.epoch, last.number + 1)
            self._kept.append(self._pack(epoch, next_number, last.end))
        return self._kept[-1]

    def _pack(self, epoch: int, number: int, first: int) -> _Window:
        start = number * self._window_documents
        stop = min(start + self._window_documents, self.shards.num_documents)
        if self._is_shuffled:
            documents = Permutation(self.shards.num_documents, *self._keys, epoch).at(start, stop)
        else:
            documents = np.arange(start, stop, dtype=np.int64)
        starts, stops = self.shards.spans(documents)
        lengths: list[int] = (stops - starts).tolist()
        seed = _seed(*self._keys, epoch if self._is_shuffled else 0, number)
        sequences = pack_documents(lengths, self._length, seed=seed, window=_pieces(lengths, self._length))
        return _Window(epoch, number, first, sequences, starts)


def _pieces(lengths: list[int], sequence_length: int) -> int:
    """How many pieces documents are cut into: all of a window is packed at once."""
    return sum(-(-length // sequence_length) for length in lengths)


def _seed(*keys: int) -> int:
    state = 0
    for key in keys:
        state = mix(state ^ key)
    return state


def _damaged(bookmark: Any) -> ConfigError:
    message = f"The saved position of the data is damaged ({bookmark!r:.60})."
    return ConfigError(message, "Start again, or from another checkpoint.")
