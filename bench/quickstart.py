"""The main job, measured: a fresh home, the whole recipe, then the same command again.

    make bench-quickstart

Writes bench/results/quickstart.json (machine, versions, wall-clock of both runs and of ``danlu --help``, the recipe's
own summary) and quickstart-output.txt (what a user sees). Downloads are kept from earlier runs; they are not counted.
Refuses to start on a busy machine.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
HOME = ROOT / ".bench" / "quickstart"
DANLU = Path(sys.executable).with_name("danlu")
BUSIEST = 0.3
"""Load average (one minute) above which timings would not mean much."""
SHOWN = re.compile(r"^(\s{4}\S.* in |✓|Numbers|Report|Done)")
"""The lines of the log worth a place in the README: finished bars and stages."""


def main() -> int:
    load = os.getloadavg()[0]
    if load > BUSIEST and "--anyway" not in sys.argv:
        print(
            f"The machine is busy: load {load:.2f}. Wait until it is below {BUSIEST}, or pass --anyway.",
            file=sys.stderr,
        )
        return 1
    cache = ROOT / ".danlu" / "cache"
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    if cache.is_dir():
        shutil.copytree(cache, HOME / "cache")
    command = [str(DANLU), "run", "recipes/product_copy.yaml", "--no-serve", "--home", str(HOME)]
    first_s, log = timed(command)
    again_s, again = timed(command)
    help_s = min(timed([str(DANLU), "--help"])[0] for _ in range(5))
    RESULTS.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "machine": machine(load),
        "versions": {name: version(name) for name in ("danlu", "torch", "tokenizers", "transformers", "sacrebleu")},
        "runs": [{"first_s": first_s, "again_s": again_s, "help_s": help_s}],
        "summary": json.loads((HOME / "quickstart.json").read_text(encoding="utf-8")),
    }
    (RESULTS / "quickstart.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shown = [line for line in log.splitlines() if SHOWN.match(line)]
    text = "$ make quickstart ARGS=--no-serve\n" + "\n".join(line.replace(str(HOME), ".danlu") for line in shown) + "\n"
    text += "\n$ make quickstart ARGS=--no-serve    # again\n" + again.splitlines()[-1] + "\n"
    (RESULTS / "quickstart-output.txt").write_text(text, encoding="utf-8")
    print(f"first {first_s:.0f} s, again {again_s:.1f} s, --help {help_s:.2f} s")
    return 0


def timed(command: list[str]) -> tuple[float, str]:
    """Wall-clock seconds and everything printed; raises when the command fails."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    seconds = round(time.perf_counter() - started, 3)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}")
    return seconds, done.stdout


def machine(load: float) -> dict[str, Any]:
    """Facts of the machine; on Linux with the instructions that matter."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*:\s*(.+)", info)
    flags = set(re.findall(r"\b(avx512_bf16|avx512_vnni|amx_bf16)\b", info))
    return {
        "cpu": " with ".join([model[1] if model else platform.processor(), ", ".join(sorted(flags))]).removesuffix(
            " with "
        ),
        "num_cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_before": round(load, 2),
    }


if __name__ == "__main__":
    sys.exit(main())
