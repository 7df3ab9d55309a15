"""core/memory: cycles are collected, and freed pages go back to the system."""

from __future__ import annotations

import gc
import platform
import subprocess
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_large_blocks_are_kept_for_the_next_ones():
    program = """
import ctypes, resource, sys
from danlu.core.memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "kept":
    keep_freed_memory()
bytes(50_000_000)
before = faults()
for _ in range(5):
    ctypes.memset(ctypes.create_string_buffer(50_000_000), 1, 50_000_000)
print(faults() - before)
"""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", program, how], capture_output=True, check=True).stdout)
        for how in ("kept", "not")
    }
    assert faults["kept"] * 4 < faults["not"]
