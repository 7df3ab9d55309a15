"""core/memory: cycles are collected, and freed pages go back to the system."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path

import pytest

from danlu.core.memory import release_memory


class _Node:
    def __init__(self) -> None:
        self.me = self


def test_objects_in_reference_cycles_are_freed():
    gc.disable()
    try:
        node = _Node()
        seen = weakref.ref(node)
        del node
        assert seen() is not None
        release_memory()
        assert seen() is None
    finally:
        gc.enable()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_blocks_between_kept_ones_go_back_to_the_system():
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    blocks = [bytearray(100_000) for _ in range(2000)]  # 200 MB in heap-sized pieces
    kept = blocks[::10]
    before = resident_bytes()
    del blocks
    release_memory()
    assert resident_bytes() < before - 100_000_000
    assert len(kept) == 200
