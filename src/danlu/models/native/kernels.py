"""The compiled kernels as Python calls them: packing weights, and threads that run passes. Knows no networks."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danlu.models.native.build import NotBuilt, built_library
from danlu.models.native.structs import BYTES, FLOATS, GROUP, HALVES, MOST_THREADS, OUTS, Adapter, Op, Pass
from danlu.models.pages import empty_pages

_LOG = logging.getLogger(__name__)
_ALIGNED = 64
KINDS = {torch.int8: BYTES, torch.bfloat16: HALVES, torch.float32: FLOATS}
"""Number types of weights."""


class Kernels:
    """One loaded library."""

    def __init__(self, library: Path) -> None:
        """Raises NotBuilt for a library that is not of these sources, or cannot be loaded."""
        try:
            self._library = ctypes.CDLL(str(library))
        except OSError as error:
            raise NotBuilt(f"{library} cannot be loaded: {error}") from error
        pointer, integer = ctypes.c_void_p, ctypes.c_int32
        self._declare("danlu_open", pointer, integer)
        self._declare("danlu_close", None, pointer)
        self._declare("danlu_threads", integer, pointer)
        self._declare("danlu_run", integer, pointer, pointer)
        self._declare("danlu_pack", None, pointer, pointer, ctypes.c_int64, ctypes.c_int64, integer)
        self._declare("danlu_sizes", None, pointer)
        sizes = (integer * 3)()
        self._library.danlu_sizes(sizes)
        if list(sizes) != [ctypes.sizeof(kind) for kind in (Op, Pass, Adapter)]:
            raise NotBuilt(f"{library} is of other sources")

    def _declare(self, name: str, result: type | None, *arguments: type) -> None:
        self.function(name, result, *arguments)

    def function(self, name: str, result: type | None, *arguments: type) -> Callable[..., Any]:
        """A function of the library, with its types."""
        function = getattr(self._library, name)
        function.restype, function.argtypes = result, arguments
        return function

    def pack(self, weight: Tensor) -> Tensor:
        """(O, D) int8, bf16 or fp32 → panels of 64 outputs, as ``product.c`` reads them; 64-byte aligned. Of many,
        (X, O, D), one after another."""
        assert 2 <= weight.dim() <= 3, "rows of outputs, or many of them"
        weight = weight.detach().contiguous()
        kind, (outputs, inputs) = KINDS[weight.dtype], weight.shape[-2:]
        parts, row_bytes = [weight] if weight.dim() == 2 else weight.unbind(), inputs * weight.element_size()
        panel = -(-row_bytes // 4) * 4 * OUTS + (-(-row_bytes // GROUP) * 2 * OUTS if kind == BYTES else 0)
        size = -(-outputs // OUTS) * panel
        room = empty_pages((size * len(parts) + _ALIGNED,), torch.uint8)
        packed = room[-room.data_ptr() % _ALIGNED :][: size * len(parts)]
        for number, part in enumerate(parts):
            self._library.danlu_pack(part.data_ptr(), packed.data_ptr() + number * size, outputs, row_bytes, kind)
        return packed

    def threads(self, num_threads: int) -> Threads:
        """A pool of its own."""
        return Threads(self._library, num_threads)


class Threads:
    """Threads that run passes, the caller's included. They sleep while there is none.

    One caller at a time. A process that was forked off gets threads of its own with its first pass.
    """

    def __init__(self, library: ctypes.CDLL, num_threads: int) -> None:
        assert 1 <= num_threads <= MOST_THREADS, num_threads
        self.num_threads = num_threads
        self._library = library
        self._start()

    def _start(self) -> None:
        self._owner = os.getpid()
        self._pool: int | None = self._library.danlu_open(self.num_threads)
        if not self._pool:
            raise MemoryError("no memory for threads")
        self.num_threads = self._library.danlu_threads(self._pool)  # fewer where the system gives no more
        self._close = weakref.finalize(self, _close, self._library, self._pool, self._owner)

    def run(self, work: Pass, num_threads: int | None = None) -> None:
        """Do a pass with at most ``num_threads``, None for all; other Python threads go on meanwhile. Everything it
        points to must stay until it ends."""
        assert self._close.alive, "these threads were closed"
        if os.getpid() != self._owner:  # threads do not come along into a forked process
            self._close.detach()
            self._start()
        work.num_threads = min(num_threads or self.num_threads, self.num_threads)
        if self._library.danlu_run(self._pool, ctypes.byref(work)):
            raise MemoryError(f"no memory for a pass of {work.num_tokens} tokens")

    def close(self) -> None:
        """End the threads. Also done when this object goes."""
        self._close()


def _close(library: ctypes.CDLL, pool: int, owner: int) -> None:
    if os.getpid() == owner:
        library.danlu_close(pool)


@functools.cache
def load_kernels() -> Kernels | None:
    """The kernels, or None where there are none; why is said in the log, once."""
    try:
        return Kernels(built_library())
    except NotBuilt as error:
        _LOG.warning("the native kernels are not used: %s; torch does the work, slower", error)
        return None
