"""Hours of service in minutes: a mixed load on a server of tiny models, and how its memory grows.

    make bench-soak ARGS="--minutes 30"

Chat, completions, vectors, schemas, tools, beams, requests that are hung up on, late or broken: tests/mixed_load.py.
They are many in a second, because the models are tiny: what leaks, leaks with each request. The resident memory of both
processes is sampled; its growth is the slope of least squares over the samples after the warm-up, a quarter of the
time. Writes bench/results/soak.json. Runs on a busy machine too, since it times nothing; the load is recorded.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from measure import ROOT, write_result

sys.path.insert(0, str(ROOT))  # the tests' tiny models and their load
from tests.mixed_load import mixed_load
from tests.serving import Served, serving, write_models

ARGUMENTS = (
    "--engine.cache-tokens", "8192", "--engine.max-rows", "16", "--engine.max-waiting", "32",
    "--engine.step-tokens", "256",
)  # fmt: skip
SAMPLE_S = 2.0
WARM_SHARE = 0.25


class Memory:
    """Samples of both processes, taken in a thread while the load runs."""

    def __init__(self, served: Served) -> None:
        self.samples: list[dict[str, float]] = []
        self._served = served
        self._is_over = threading.Event()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more."""
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(SAMPLE_S):
            engine = self._served.engine_pid()
            if engine is None:
                continue  # it is being started again, which its restarts tell
            sample = {"at_s": round(time.monotonic() - self._began, 1)}
            for name, pid in (("http", self._served.process.pid), ("engine", engine)):
                sample |= {f"{name}_{what}": value for what, value in facts(pid).items()}
            self.samples.append(sample)


def facts(pid: int) -> dict[str, float]:
    """Resident memory in MiB that files on disk do not back, open files and threads of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    kibibytes = int(status["RssAnon"].split()[0])
    return {
        "mib": round(kibibytes / 1024, 2),
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
    }


def slope_per_hour(samples: list[dict[str, float]], name: str) -> float:
    """Growth in an hour, by least squares."""
    times, values = [s["at_s"] for s in samples], [s[name] for s in samples]
    middle, level = sum(times) / len(times), sum(values) / len(values)
    spread = sum((t - middle) ** 2 for t in times)
    return 3600 * sum((t - middle) * (v - level) for t, v in zip(times, values, strict=True)) / spread


def soak(minutes: float, workers: int) -> tuple[dict[str, Any], dict[str, float]]:
    """The load, and what came of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = [f"{name}={path}" for name, path in write_models(folder / "models").items()]
        with serving(*models, arguments=ARGUMENTS, home=folder / "home") as served:
            memory = Memory(served)
            seen: Counter[str] = Counter()
            rounds = max(1, round(minutes * 2))
            for number in range(rounds):
                seen += asyncio.run(mixed_load(served.url, workers=workers, seconds=60 * minutes / rounds, seed=number))
                done = sum(seen.values())
                last = memory.samples[-1]
                print(
                    f"{number + 1}/{rounds}  {done:,} requests  {last['http_mib']} + {last['engine_mib']} MiB",
                    flush=True,
                )
            memory.stop()
            time.sleep(1.5)  # the engine tells its state every second
            is_idle, restarts = served.is_idle(), served.metric("danlu:engine_restarts_total")
    warm = memory.samples[int(len(memory.samples) * WARM_SHARE) :]
    sums = {f"{name}_mib_per_hour": round(slope_per_hour(warm, f"{name}_mib"), 2) for name in ("http", "engine")}
    hours = (warm[-1]["at_s"] - warm[0]["at_s"]) / 3600
    done = seen.total()
    num_warm = done * (1 - WARM_SHARE)
    sums |= {
        f"{name}_bytes_per_request": round(sums[f"{name}_mib_per_hour"] * hours * 2**20 / num_warm, 1)
        for name in ("http", "engine")
    }
    every = max(1, len(memory.samples) // 150)
    run = {
        "minutes": minutes, "workers": workers, "requests": done, "answers": dict(sorted(seen.items())), **sums,
        "is_idle_after": is_idle, "restarts": restarts, "load_after": round(os.getloadavg()[0], 2),
        "samples": memory.samples[::every],
    }  # fmt: skip
    return run, sums


def main() -> int:
    """Soak, write, say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=12)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    run, sums = soak(arguments.minutes, arguments.workers)
    path = write_result("soak", load, {"soak": run}, sums, ())
    print(f"{run['requests']:,} requests; {sums}; wrote {path}")
    broken = set(run["answers"]) - {"200", "400", "404", "429", "504", "hung up"}
    return 1 if broken or run["restarts"] or not run["is_idle_after"] else 0


if __name__ == "__main__":
    sys.exit(main())
