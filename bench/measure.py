"""What every benchmark here needs: facts of the machine, a refusal when it is busy, two things timed in turn."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
BUSIEST = 0.3
"""Load average (one minute) above which timings would not mean much."""
SETTLE_S = 0.2
"""Pause before a timing: idle threads of what ran before spin for a while."""


def refuse_when_busy() -> float:
    """The load average; ends the program when the machine is busy, unless ``--anyway`` is given."""
    load = os.getloadavg()[0]
    if load > BUSIEST and "--anyway" not in sys.argv:
        print(
            f"The machine is busy: load {load:.2f}. Wait until it is below {BUSIEST}, or pass --anyway.",
            file=sys.stderr,
        )
        raise SystemExit(1)
    return load


def machine(load: float) -> dict[str, Any]:
    """Facts of the machine; on Linux with the instructions that matter."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*:\s*(.+)", info)
    flags = sorted(set(re.findall(r"\b(avx512_bf16|avx512_vnni|amx_bf16)\b", info)))
    name = model[1] if model else platform.processor()
    return {
        "cpu": f"{name} with {', '.join(flags)}" if flags else name,
        "num_cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_before": round(load, 2),
    }


def in_turn(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int, *, repeats: int = 1
) -> dict[str, Any]:  # fmt: skip
    """Both timed alternately, one warm-up each; ``ratio`` is how many times faster ours is (medians).

    ``repeats`` calls make one timing, for things too short to time alone; times are milliseconds a call.
    """
    ours(), theirs()
    times: dict[str, list[float]] = {"ours_ms": [], "theirs_ms": []}
    for _ in range(rounds):
        for name, call in (("ours_ms", ours), ("theirs_ms", theirs)):
            time.sleep(SETTLE_S)
            started = time.perf_counter()
            for _ in range(repeats):
                call()
            times[name].append(round((time.perf_counter() - started) * 1000.0 / repeats, 4))
    ratio = statistics.median(times["theirs_ms"]) / statistics.median(times["ours_ms"])
    return {**times, "ratio": round(ratio, 3)}


def write_result(
    name: str, load: float, runs: Mapping[str, Any], ratios: Mapping[str, float], packages: tuple[str, ...]
) -> Path:  # fmt: skip
    """bench/results/NAME.json: machine, versions, every run, ratios."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    result = {
        "machine": machine(load),
        "versions": {package: version(package) for package in ("danlu", "torch", *packages)},
        "ratios": dict(ratios),
        "runs": dict(runs),
    }
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def print_ratios(runs: Mapping[str, Mapping[str, Any]]) -> None:
    """A table: what, ours, theirs, ratio."""
    print(f"{'case':<28} {'ours ms':>10} {'theirs ms':>10} {'ratio':>7}")
    for case, run in runs.items():
        ours, theirs = statistics.median(run["ours_ms"]), statistics.median(run["theirs_ms"])
        print(f"{case:<28} {ours:>10.2f} {theirs:>10.2f} {run['ratio']:>7.2f}")
