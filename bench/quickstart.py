"""The main job, measured: a fresh home, the whole recipe, then the same command again.

    make bench-quickstart

Writes bench/results/quickstart.json (machine, versions, wall-clock of both runs and of ``danlu --help``, the recipe's
own summary) and quickstart-output.txt (what a user sees). Downloads are kept from earlier runs; they are not counted.
Refuses to start on a busy machine.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measure import RESULTS, ROOT, machine, refuse_when_busy

HOME = ROOT / ".bench" / "quickstart"
DANLU = Path(sys.executable).with_name("danlu")
SHOWN = re.compile(r"^(\s{4}\S.* in |✓|Numbers|Report|Done)")
"""The lines of the log worth a place in the README: finished bars and stages."""


def main() -> int:
    load = refuse_when_busy()
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


if __name__ == "__main__":
    sys.exit(main())
