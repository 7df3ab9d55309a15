"""Energy of a stage: the processor's own counters where they can be read, else busy core-seconds times a constant.

The measured figure is the whole machine's (other programs included) and covers processor packages and their memory;
the estimated one covers this process and the children it waited for. Neither sees a GPU. Both say which they are.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from danlu.lineage.manifest import Energy

WATTS_PER_CORE = 10.0
"""Estimate for one busy core with its share of memory and power-supply losses. Server processors draw 4 to 6 W a core
at full load, laptops 7 to 10 W, and memory, board and supply add about half again."""
GRID_KG_PER_KWH = 0.48
"""World average carbon intensity of electricity, kg of CO2 equivalent per kWh; a recipe may state its own."""
POWERCAP = Path("/sys/class/powercap")


@dataclass
class _Counter:
    """One package counter in microjoules; it wraps at ``wraps_at``."""

    path: Path
    wraps_at: int
    last: int
    total: int = 0

    def sample(self) -> None:
        now = int(self.path.read_text())
        step = now - self.last
        self.total += step if step >= 0 else step + self.wraps_at
        self.last = now


class EnergyMeter:
    """Measure the block between construction and ``stop``."""

    def __init__(self, grid_kg_per_kwh: float = GRID_KG_PER_KWH, powercap: Path = POWERCAP) -> None:
        self._grid = grid_kg_per_kwh
        self._counters = _counters(powercap)
        self._busy = _busy_seconds()
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        if self._counters:  # a package at full load wraps its counter in some twenty minutes
            threading.Thread(target=self._sample_often, name="energy", daemon=True).start()

    def _sample_often(self) -> None:
        while not self._stopped.wait(30.0):
            self._sample()

    def _sample(self) -> None:
        with self._lock:
            for counter in self._counters:
                counter.sample()

    def stop(self) -> Energy:
        """The energy since construction."""
        self._stopped.set()
        return self.so_far()

    def so_far(self) -> Energy:
        """The energy until now; measuring goes on."""
        if self._counters:
            self._sample()
            joules = sum(counter.total for counter in self._counters) / 1e6
        else:
            joules = (_busy_seconds() - self._busy) * WATTS_PER_CORE
        value_wh = joules / 3600.0
        return Energy(
            value_wh=round(value_wh, 6),
            method="measured" if self._counters else "estimated",
            grid_kg_per_kwh=self._grid,
            gco2=round(value_wh * self._grid, 6),  # Wh x kg/kWh = g
        )


def _busy_seconds() -> float:
    """Processor seconds of this process and its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _counters(powercap: Path) -> list[_Counter]:
    """Package counters this process may read; none on most virtual machines."""
    found: list[_Counter] = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        try:
            if not (folder / "name").read_text().startswith("package"):
                continue
            wraps_at = int((folder / "max_energy_range_uj").read_text())
            path = folder / "energy_uj"
            found.append(_Counter(path=path, wraps_at=wraps_at, last=int(path.read_text())))
        except OSError:  # readable by root only on many systems: the estimate says that it is one
            return []
    return found
