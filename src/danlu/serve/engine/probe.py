"""How many threads a model runs fastest with, measured at the start in less than a second and remembered.

More threads than a small model can use make it slower; those that help at all help prompts most, so a small gain is
enough. Knows nothing of models or torch: the caller gives a step to time.
"""

from __future__ import annotations

import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from danlu.core.errors import DataError, ResourceError
from danlu.core.files import read_json_object, write_json

_LOG = logging.getLogger(__name__)
_MIN_GAIN = 1.05
"""A higher number of threads must be this much faster than a lower one."""
_MAX_ROUNDS = 15
_MAX_KEPT = 500
"""Models remembered in one file."""


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """What a measurement holds for."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {num_cores()} cores"


def choose_threads(
    step: Callable[[int], None],
    model: str,
    *,
    candidates: Sequence[int] = (),
    cache: Path | None = None,
    budget_s: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
    is_busy: bool | None = None,
) -> int:
    """The number of threads among ``candidates`` (1 and all cores when empty) with which ``step`` is fastest.

    ``step(num_threads)`` does one step of the model with so many threads; ``model`` names its shape and precision. The
    answer is remembered in ``cache`` (a JSON file, by default in the user's cache folder) for this model and machine,
    unless the machine is busy with other things (``is_busy``; None to ask it).
    """
    counts = sorted(set(candidates or (1, num_cores())))
    if len(counts) == 1:
        return counts[0]
    path = cache or Path.home() / ".cache" / "danlu" / "threads.json"
    key = f"{machine()}; {model}; {', '.join(map(str, counts))}"
    known = _read(path)
    if known.get(key) in counts:
        return known[key]
    best = fastest(measure(step, counts, budget_s, clock))
    if os.getloadavg()[0] > num_cores() if is_busy is None else is_busy:
        _LOG.warning("The machine is busy: %d threads seem to be fastest now, which is measured again.", best)
        return best
    _write(path, {**dict(list(known.items())[-_MAX_KEPT + 1 :]), key: best})
    return best


def measure(
    step: Callable[[int], None], counts: Sequence[int], budget_s: float, clock: Callable[[], float]
) -> dict[int, float]:
    """Median seconds of a step with each number of threads, taken in turn so that a busy moment hits all of them."""
    began = clock()
    times: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(_MAX_ROUNDS):
        for count in counts:
            step(count)  # the first after a change starts threads, and fills caches
            started = clock()
            step(count)
            times[count].append(clock() - started)
        if clock() - began > budget_s:
            break
    return {count: statistics.median(found) for count, found in times.items()}


def fastest(seconds: dict[int, float]) -> int:
    """The fewest threads that no higher number beats clearly."""
    best, *others = sorted(seconds)
    for count in others:
        if seconds[best] > _MIN_GAIN * seconds[count]:
            best = count
    return best


def _read(path: Path) -> dict[str, int]:
    if not path.is_file():
        return {}
    try:
        return read_json_object(path)
    except (DataError, OSError) as error:
        _LOG.warning("%s cannot be read (%s): the number of threads is measured again.", path, error)
        return {}


def _write(path: Path, known: dict[str, int]) -> None:
    try:
        write_json(path, known)
    except (ResourceError, OSError) as error:  # no place to remember it: it is measured again next time
        _LOG.warning("The number of threads is not remembered: %s", error)
