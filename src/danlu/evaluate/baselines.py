"""What a language model has to beat in bits per byte: a compressor, and an n-gram of bytes.

Both get the training documents first, as a model does, and are charged for the held-out ones alone. Knows no tokenizer.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

END = 256
"""The symbol after a document; before it stand as many as the order needs."""
_SYMBOLS = 257
_LONGEST_WINDOW = 1 << 27
LONGEST = 7
"""Symbols of an n-gram that one 64-bit number holds."""

Codes = npt.NDArray[np.int64]
Chances = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What a baseline needed for held-out documents."""

    bits: float
    """In all, document ends included."""
    text_bytes: int
    """UTF-8 bytes of the documents."""

    @property
    def bits_per_byte(self) -> float:
        """The number to beat."""
        return self.bits / self.text_bytes


def xz(train: Iterable[bytes], held_out: Iterable[bytes], *, preset: int = 9) -> Baseline:
    """Growth of an xz file (LZMA2) when the held-out documents come after the training ones, NUL between documents.

    Its window holds all text up to 128 MiB: of more only the last part helps. Unlike a model that is frozen, it goes on
    learning from each held-out document it has written. Both files are made at once, on two cores.
    """
    before = b"".join(document + b"\0" for document in train)
    documents = list(held_out)
    whole = before + b"".join(document + b"\0" for document in documents)
    window = min(_LONGEST_WINDOW, 1 << max(16, len(whole).bit_length()))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": window}]

    def size(text: bytes) -> int:
        return len(lzma.compress(text, lzma.FORMAT_RAW, filters=filters))

    with ThreadPoolExecutor(2) as pool:
        sizes = list(pool.map(size, (before, whole)))
    return Baseline(bits=8.0 * (sizes[1] - sizes[0]), text_bytes=sum(map(len, documents)))


class KneserNey:
    """Interpolated Kneser-Ney over bytes (Kneser & Ney 1995; Chen & Goodman 1999, equations 24 and 27).

    p(w | h) = (c(h w) - d)⁺ / c(h) + d · (kinds of w after h) / c(h) · p(w | h without its first symbol)

    In the highest order c counts occurrences, below it in how many contexts an n-gram was seen; the lowest falls back
    to all 257 symbols alike. One discount an order: d = n₁ / (n₁ + 2 n₂), n₁ and n₂ the n-grams seen once and twice.
    """

    def __init__(self, documents: Iterable[bytes], order: int = 6) -> None:
        """Count ``documents``; ``order`` symbols, 7 at most, make an n-gram."""
        assert 1 <= order <= LONGEST
        self._order = order
        grams, counts = np.unique(self._codes(documents), return_counts=True)
        self._orders = [_Order.of(grams, counts)]
        for length in range(order - 1, 0, -1):  # in how many contexts each shorter one was seen
            grams, counts = np.unique(grams % _SYMBOLS**length, return_counts=True)
            self._orders.insert(0, _Order.of(grams, counts))

    def probability(self, history: Sequence[int], symbol: int) -> float:
        """p(symbol | history) of order - 1 symbols, each a byte or END."""
        assert len(history) == self._order - 1
        code = 0
        for one in (*history, symbol):
            code = code * _SYMBOLS + one
        return float(self._chances(np.array([code], np.int64))[0])

    def measure(self, documents: Iterable[bytes]) -> Baseline:
        """Bits for documents, each with its END."""
        texts = list(documents)
        bits = -np.log2(self._chances(self._codes(texts))).sum()
        return Baseline(bits=float(bits), text_bytes=sum(map(len, texts)))

    def _chances(self, codes: Codes) -> Chances:
        """The probability of the last symbol of each n-gram after the others."""
        chances = np.full(codes.shape, 1.0 / _SYMBOLS)
        for length, order in enumerate(self._orders, start=1):
            chances = order.mixed(codes % _SYMBOLS**length, chances)
        return chances

    def _codes(self, documents: Iterable[bytes]) -> Codes:
        """Every n-gram of the documents as a number: symbols are its digits, the told one the last."""
        before = np.full(self._order - 1, END, np.int16)
        parts: list[npt.NDArray[Any]] = []
        for document in documents:
            parts += [before, np.frombuffer(document, np.uint8).astype(np.int16), _END_MARK]
        symbols = np.concatenate(parts) if parts else np.empty(0, np.int16)
        starts = np.cumsum([0, *(part.size for part in parts)])[:-1:3]  # of each document with what stands before it
        is_told = np.ones(symbols.size, np.bool_)
        codes = np.zeros(symbols.size, np.int64)  # of the n-gram that ends here; in place, for there may be 10⁸
        for place in range(self._order):
            codes *= _SYMBOLS
            later = self._order - 1 - place
            codes[later:] += symbols[: symbols.size - later]
            if place:
                is_told[starts + place - 1] = False
        return codes[is_told]


_END_MARK = np.array([END], np.int16)


@dataclass(frozen=True)
class _Order:
    """The n-grams of one length."""

    grams: Codes
    """Ascending."""
    counts: Codes
    """How often each was seen, or in how many contexts."""
    histories: Codes
    """Without their last symbol, each once, ascending."""
    totals: Codes
    """Counts of a history's n-grams."""
    kinds: Codes
    """N-grams of a history."""
    discount: float

    @classmethod
    def of(cls, grams: Codes, counts: Codes) -> _Order:
        """From n-grams in ascending order."""
        before = grams // _SYMBOLS
        first = np.flatnonzero(np.diff(before, prepend=-1))
        kinds = np.diff(first, append=before.size)
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        discount = once / (once + 2 * twice) if once else 0.5
        return cls(grams, counts, before[first], np.add.reduceat(counts, first), kinds, discount)

    def mixed(self, codes: Codes, shorter: Chances) -> Chances:
        """Probabilities of n-grams, given those of the n-grams one symbol shorter."""
        place, is_known = _find(self.histories, codes // _SYMBOLS)
        gram, is_seen = _find(self.grams, codes)
        seen = np.maximum(np.where(is_seen, self.counts[gram], 0) - self.discount, 0.0)
        mixed = (seen + self.discount * self.kinds[place] * shorter) / self.totals[place]
        return np.where(is_known, mixed, shorter)


def _find(table: Codes, wanted: Codes) -> tuple[Codes, npt.NDArray[np.bool_]]:
    """Where numbers stand in an ascending table, and whether they do."""
    place = np.minimum(np.searchsorted(table, wanted), table.size - 1)
    return place, table[place] == wanted
