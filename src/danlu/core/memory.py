"""Memory given back to the system: what Python and the C allocator keep after it was freed."""

from __future__ import annotations

import ctypes
import gc
import sys


def release_memory() -> None:
    """Free objects in reference cycles, and hand freed pages that glibc keeps back to the system.

    Without this a process that allocates tensors of ever-changing sizes grows to several times what it uses.
    """
    gc.collect()
    trim_memory()


def trim_memory() -> None:
    """Hand freed pages that glibc keeps back to the system; much cheaper than ``release_memory``."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only; musl has none
        if trim is not None:
            trim(0)
