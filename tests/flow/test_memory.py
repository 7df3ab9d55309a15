import os
import subprocess
import sys
import time

from danlu.flow.memory import PeakMemory, tree_rss_bytes


def test_a_childs_memory_counts_and_the_peak_stays() -> None:
    before = tree_rss_bytes(os.getpid())
    meter = PeakMemory(interval_s=0.01)
    code = "data = bytearray(80_000_000); data[::4096] = b'x' * len(data[::4096]); print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(0.1)
    child.communicate(b"\n")
    assert meter.stop() >= before + 60_000_000
