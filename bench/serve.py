"""The engine behind its server, head to head: llama.cpp, transformers, sentence-transformers, infinity, CTranslate2.

    make bench-serve                                        (ARGS="--only decode,prefill" for some cases)
    make bench-serve ARGS="--only decode --rounds 1 --share 0.1 --anyway"      to try things out: nothing is written

Same weights, prompts of equal length, two threads and two cores for everybody, the client (``danlu bench serve``) on
the same cores; greedy, answers of fixed length. Systems take turns, round after round; medians count. Everything goes
through HTTP, except where a peer has no server of its own kind (transformers' generate, sentence-transformers,
CTranslate2), which is in its favour. Cases of an earlier run stay in bench/results/serve.json. It refuses to start on a
busy machine and waits between cases until the machine is idle again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from measure import BUSIEST, RESULTS, ROOT, refuse_when_busy, write_result
from serve_cases import CASES, Options
from serve_peers import FOLDER, set_up, versions
from serve_ratios import ratios


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CASES), help="cases to run; the result keeps its others")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each system")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of requests")
    parser.add_argument("--anyway", action="store_true", help="start on a busy machine too")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    unknown = set(chosen) - set(CASES)
    if unknown:
        parser.error(f"unknown case {min(unknown)}; known: {', '.join(CASES)}")
    load = refuse_when_busy()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server stays behind
    set_up()
    options = Options(rounds=arguments.rounds, share=arguments.share)
    is_trial = arguments.anyway or arguments.share < 1.0
    runs: dict[str, Any] = {}
    for case in chosen:
        if not is_trial:
            wait_until_idle()
        before = os.getloadavg()[0]
        print(f"{case}:", flush=True)
        runs[case] = CASES[case](options)
        print_ratios(ratios(runs))
        write(runs, {case: round(before, 2)}, load, is_trial=is_trial)  # after each: hours of work are not lost
    return 0


def wait_until_idle() -> None:
    """The average still holds our own last case for minutes; what matters is that nothing runs now."""
    while os.getloadavg()[0] > BUSIEST and running() > 1:
        time.sleep(2)


def running() -> int:
    """Threads that run at this moment, this one included."""
    return int(Path("/proc/loadavg").read_text(encoding="ascii").split()[3].split("/")[0])


def write(runs: dict[str, Any], loads: dict[str, float], load: float, *, is_trial: bool) -> None:
    """Into the result file, beside the cases that were not run; of a trial only under .bench."""
    if is_trial:
        path = FOLDER / "partial.json"
        path.write_text(json.dumps({"ratios": ratios(runs), "runs": runs}, indent=2, default=str), encoding="utf-8")
        return
    path = RESULTS / "serve.json"
    earlier = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else {}
    loads = earlier.pop("load_before", {}) | loads
    earlier.pop("peers", None)
    plain = json.loads(json.dumps(runs, default=str).replace(f"{ROOT}/", ""))
    merged = {case: (earlier | plain)[case] for case in CASES if case in earlier or case in plain}
    write_result("serve", load, {"peers": versions(), "load_before": loads, **merged}, ratios(merged), ())


def print_ratios(found: dict[str, float]) -> None:
    """Name and value, one a line."""
    for name, ratio in found.items():
        print(f"{name:<32} {ratio:8.3f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
