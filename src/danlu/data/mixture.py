"""Which of several sources each item of a mixture comes from: exactly in proportion, and computed, not drawn.

Item n belongs to the source in whose share of [0, 1) the fractional part of n times the golden ratio falls. Those parts
fill the interval as evenly as any sequence can (Kronecker's sequence; its discrepancy grows with log n / n), so the
shares hold in every stretch of the stream, and any position can be found again. Knows weights only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_GOLDEN = 0x9E3779B97F4A7C15
"""The golden ratio's fractional part times 2 to the 64."""
_BLOCK = 1 << 16
"""Items whose sources are found at once."""


class Mixture:
    """An endless mixture of ``len(weights)`` sources; weights sum to 1."""

    def __init__(self, weights: Sequence[float]) -> None:
        assert weights
        assert abs(sum(weights) - 1) < 1e-6
        bounds = [round(share * 2.0**64) for share in np.cumsum(weights)[:-1]]
        self._bounds = np.array([min(bound, (1 << 64) - 1) for bound in bounds], np.uint64)
        self._num_sources = len(weights)
        self._block = -1
        self._before = np.zeros(self._num_sources, np.int64)  # items of each source before the block
        self._open_block(0)

    def locate(self, number: int) -> tuple[int, int]:
        """The source of item ``number``, and how many items of that source come before it."""
        block, place = divmod(number, _BLOCK)
        if block != self._block:
            self._open_block(block)
        source = int(self._source[place])
        return source, int(self._before[source] + self._rank[place])

    def _open_block(self, block: int) -> None:
        """Find the sources of one block, counting from the last one on, or from the beginning when it lies before."""
        if block < self._block:
            self._block, self._before = -1, np.zeros(self._num_sources, np.int64)
        while self._block < block:
            if self._block >= 0:
                self._before = self._before + np.bincount(self._source, minlength=self._num_sources)
            self._block += 1
            self._source = self._sources(self._block)
        self._rank = np.empty(_BLOCK, np.int64)
        for source in range(self._num_sources):
            here = np.flatnonzero(self._source == source)
            self._rank[here] = np.arange(len(here))

    def _sources(self, block: int) -> npt.NDArray[np.int64]:
        numbers = np.arange(block * _BLOCK, (block + 1) * _BLOCK, dtype=np.uint64)
        return np.searchsorted(self._bounds, numbers * np.uint64(_GOLDEN), side="right").astype(np.int64)
