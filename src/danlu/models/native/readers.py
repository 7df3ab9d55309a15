"""Towers that read whole rows for whoever asks: one for each network whose weights stay as they are.

A tower holds a second copy of the weights, or with ``own_tower`` the only one. It is kept as long as its network, and
made anew when a layer or a weight was replaced since.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from danlu.models.native.programs import state_of
from danlu.models.native.tower import NativeTower, native_tower
from danlu.models.network import Tower


@dataclass(frozen=True)
class _Reader:
    tower: NativeTower | None
    """None where torch has to do the work."""
    state: tuple[int, ...]
    kept: list[object]
    lock: threading.Lock


_readers: WeakKeyDictionary[Tower, _Reader] = WeakKeyDictionary()
_lock = threading.Lock()


def own_tower(tower: Tower, dtype: torch.dtype) -> bool:
    """Write a tower down and let go of torch's copies of its weights: from now on only ``read_tower`` can run it.

    Returns whether the kernels know it; if not, it stays as it is.
    """
    with _lock:
        made = native_tower(tower, dtype, releases=True)
        if made is not None:
            _readers[tower] = _Reader(made, *state_of(tower), threading.Lock())
        return made is not None


def read_tower(
    tower: Tower,
    ids: Tensor,
    lengths: Sequence[int],
    dtype: torch.dtype,
    *,
    types: Tensor | None = None,
    num_threads: int | None = None,
) -> Tensor | None:
    """Rows of ``lengths`` laid end to end, ids and types (N,) → hidden states, ``dtype`` (N, D), computed with
    ``num_threads``, None for as many as torch uses. None where torch has to do the work."""
    reader = _reader(tower, dtype)
    if reader.tower is None:
        return None
    with reader.lock:
        reader.tower.use_threads(num_threads or torch.get_num_threads())
        return reader.tower.encode(ids, lengths, types=types).to(dtype)


def _reader(tower: Tower, dtype: torch.dtype) -> _Reader:
    with _lock:
        state, kept = state_of(tower)
        found = _readers.get(tower)
        if found is None or found.state != state:
            found = _readers[tower] = _Reader(native_tower(tower, dtype), state, kept, threading.Lock())
        return found
