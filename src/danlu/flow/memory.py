"""Peak memory of this process and its children together, sampled while a run lasts.

Without /proc it is this process's own peak only.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
from pathlib import Path

_PAGE_BYTES = resource.getpagesize()


class PeakMemory:
    """Samples from construction until ``stop``."""

    def __init__(self, interval_s: float = 0.25) -> None:
        self._interval_s = interval_s
        self._peak = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval_s):
            self._peak = max(self._peak, tree_rss_bytes(os.getpid()))

    def peak_bytes(self) -> int:
        """The most so far: of the samples, and of this process's own high-water mark, which misses no spike."""
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return max(self._peak, own if sys.platform == "darwin" else own * 1024)

    def stop(self) -> int:
        """End sampling; the peak in bytes."""
        self._stopped.set()
        self._thread.join()
        return self.peak_bytes()


def tree_rss_bytes(pid: int) -> int:
    """Resident bytes of a process and its descendants; pages they share are counted more than once."""
    total, waiting = 0, [pid]
    while waiting:
        folder = Path("/proc") / str(waiting.pop())
        try:
            total += int((folder / "statm").read_text().split()[1]) * _PAGE_BYTES
            for task in (folder / "task").iterdir():
                waiting.extend(int(child) for child in (task / "children").read_text().split())
        except OSError:  # it ended while we looked, or there is no /proc
            continue
    return total
