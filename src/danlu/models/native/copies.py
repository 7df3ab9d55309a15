"""The kernel that copies pages, as Python calls it. Knows pools and no rows."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int32, c_int64, c_void_p

from torch import Tensor

from danlu.models.native.kernels import Kernels
from danlu.models.native.structs import PAGE


class _Room(ctypes.Structure):
    """Kept equal to pages.c."""

    _fields_ = (("pages", c_void_p), ("rows", c_int64), ("token_bytes", c_int64))


class _Copy(ctypes.Structure):
    """Kept equal to pages.c."""

    _fields_ = (("source", c_int32), ("target", c_int32), ("tokens", c_int32))


class Copier:
    """Copies pages of several pools at once."""

    def __init__(self, kernels: Kernels, along: Sequence[Tensor], across: Sequence[Tensor]) -> None:
        """Pools of as many pages each. along: (P, K, PAGE, …), a token's numbers side by side; across: (P, K, E, PAGE),
        each of its numbers in another row."""
        self._function = kernels.function("danlu_copy", None, c_void_p, c_int32, c_void_p, c_int32)
        self._kept = (*along, *across)
        counts = {len(pool) for pool in self._kept}
        assert len(counts) == 1, f"pools have {sorted(counts)} pages"
        assert all(pool.is_contiguous() for pool in self._kept), "pages lie in one piece"
        (self._num_pages,) = counts
        rooms = [_room(pool, pool.shape[1]) for pool in along]
        rooms += [_room(pool, pool.shape[1] * pool.shape[2]) for pool in across]
        self._rooms = (_Room * len(rooms))(*rooms)

    def copy(self, pairs: Sequence[tuple[int, int]], counts: Sequence[int]) -> None:
        """(source, target) each, in this order, and how many tokens of each are needed; others may come along."""
        copies = (_Copy * len(pairs))(*((*pair, count) for pair, count in zip(pairs, counts, strict=True)))
        assert all(0 <= page < self._num_pages for pair in pairs for page in pair), f"there are {self._num_pages} pages"
        assert all(0 <= count <= PAGE for count in counts), f"a page has {PAGE} tokens"
        self._function(self._rooms, len(self._rooms), copies, len(copies))


def _room(pool: Tensor, rows: int) -> _Room:
    page_bytes = pool[0].numel() * pool.element_size()
    assert page_bytes % (rows * PAGE) == 0, f"{tuple(pool.shape)} are no pages"
    return _Room(pool.data_ptr(), rows, page_bytes // (rows * PAGE))
