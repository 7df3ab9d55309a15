"""Where the time of an answer goes: products, attention, sampling, scheduling, HTTP.

    python bench/serve_split.py MODEL_FOLDER ROWS

prints the share of attention in a step of so many rows. Steps with a short and with a long past differ in nothing else.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve_systems import CPUS, ENVIRONMENT, THREADS, Server

LENGTH = 256
"""Tokens of prompt and answer together; an answer's token sees half of it on average."""
PROMPT = 8
_REPEATS = 40


def split(server: Server, folder: Path, level: int, num_requests: int) -> dict[str, Any]:
    """Microseconds of each part for one token of an answer, ``level`` clients at once; the server stands."""
    before, http_s = _engine_seconds(server), _http_seconds(server)
    run = server.ask("--concurrency", level, "--num-requests", num_requests, "--input-tokens", PROMPT,
                     "--output-tokens", LENGTH - PROMPT, "--ignore-eos")  # fmt: skip
    spent = {name: value - before.get(name, 0.0) for name, value in _engine_seconds(server).items()}
    command = [*CPUS, sys.executable, __file__, str(folder), str(level)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    attention = float(json.loads(done.stdout.splitlines()[-1]))
    model = spent.pop("model")
    parts = {"products": model * (1.0 - attention), "attention": model * attention, **spent}
    parts["http"] = _http_seconds(server) - http_s
    tokens = run["total_output_tokens"]
    found = {name: round(1e6 * seconds / tokens, 2) for name, seconds in parts.items()}
    print(f"  {level} at once, µs a token: {found}", flush=True)
    return {"us_per_token": found, "duration_us_per_token": round(1e6 * run["duration"] / tokens, 2)}


def _engine_seconds(server: Server) -> dict[str, float]:
    """Seconds of the engine by part, as its metrics tell."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        text = response.read().decode()
    found = re.findall(r'^danlu:engine_seconds_total\{.*part="(\w+)"\} ([0-9.e+-]+)$', text, re.M)
    return {name: float(value) for name, value in found}


def _http_seconds(server: Server) -> float:
    """Processor time of the process that speaks HTTP."""
    assert server.process is not None
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def attention_share(folder: str, rows: int) -> float:
    """Of a step in which each row gets a token, at half of ``LENGTH``."""
    from danlu.models.fastest import make_executor
    from danlu.models.load import load_model
    from danlu.models.native.executor import NativeExecutor
    from danlu.models.paged import PagedCache, Segment, num_pages

    model = load_model(Path(folder), is_packed=True)
    each = num_pages(LENGTH)
    cache = PagedCache(model.stack_config, rows * each, model.activation_dtype)
    executor = make_executor(model, cache, num_threads=THREADS)
    assert isinstance(executor, NativeExecutor), "the kernels in C"
    tables: Sequence[range] = [range(row * each, (row + 1) * each) for row in range(rows)]
    times: dict[int, list[float]] = {0: [], LENGTH // 2: []}
    for repeat in range(_REPEATS):
        for start, seconds in times.items():
            began = time.perf_counter()
            executor.run([100 + repeat] * rows, [Segment(table, start, 1) for table in tables], range(rows))
            seconds.append(time.perf_counter() - began)
    none, half = (statistics.median(seconds) for seconds in times.values())
    return max(0.0, 1.0 - none / half)


if __name__ == "__main__":
    print(json.dumps(attention_share(sys.argv[1], int(sys.argv[2]))))
