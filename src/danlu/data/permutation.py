"""A shuffled order of any length that is computed, not stored: which item comes at a place is a function of a key.

A Feistel network (Luby and Rackoff 1988) permutes the numbers below a power of four; numbers beyond the count are sent
through it again until they fall inside ("cycle walking", Black and Rogaway 2002). Good for shuffling, not for secrets.
The order for a key never changes between library versions. Knows nothing of what is shuffled.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

_ROUNDS = 6
_MASK = (1 << 64) - 1


class Permutation:
    """A permutation of 0 … count - 1, a pure function of ``count`` and ``keys``."""

    def __init__(self, count: int, *keys: int) -> None:
        assert 0 < count < 1 << 62
        self.count = count
        half_bits = max(1, ((count - 1).bit_length() + 1) // 2)
        self._half_bits = np.uint64(half_bits)
        self._mask = np.uint64((1 << half_bits) - 1)
        state = 0
        for key in keys:
            state = mix(state ^ (key & _MASK))
        self._round_keys = [np.uint64(mix(state + number)) for number in range(_ROUNDS)]

    def at(self, start: int, stop: int) -> Integers:
        """Items at places start … stop - 1, (stop - start,)."""
        assert 0 <= start <= stop <= self.count
        values = self._encipher(np.arange(start, stop, dtype=np.uint64))
        outside = np.flatnonzero(values >= self.count)
        while outside.size:
            values[outside] = self._encipher(values[outside])
            outside = outside[values[outside] >= self.count]
        return values.astype(np.int64)

    def _encipher(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = values >> self._half_bits, values & self._mask
        for key in self._round_keys:
            left, right = right, left ^ (_mix_array(right ^ key) & self._mask)
        return left << self._half_bits | right


def mix(value: int) -> int:
    """A 64-bit hash of a number (the finaliser of splitmix64, Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK
    return value ^ value >> 31


def _mix_array(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)
