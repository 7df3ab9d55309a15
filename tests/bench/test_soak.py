"""What the soak makes of its samples."""

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))  # its scripts import each other by name
from bench.soak import facts, slope_per_hour


def test_the_slope_is_that_of_the_line_through_the_samples() -> None:
    samples = [{"at_s": float(t), "mib": 100 + 0.01 * t + (1 if t % 4 else -1) * 1e-6} for t in range(0, 200, 2)]
    assert slope_per_hour(samples, "mib") == pytest.approx(36.0, abs=1e-3)


def test_facts_of_a_process_are_read_from_the_kernel() -> None:
    found = facts(os.getpid())
    assert found["mib"] > 5
    assert found["files"] >= 3
    assert found["threads"] >= 1
