"""The sentiment recipes, run whole with several seeds, beside TF-IDF and logistic regression on the same rows.

    make bench-sentiment                           ARGS="--only=zh --seeds=17,18,19"

Writes bench/results/sentiment.json (machine, versions, each seed's scores, the rival's) after each recipe, so that one
of them may be run again alone. Both sides choose on the validation rows; the test rows are scored once. Scores do not
depend on how busy the machine is, so it starts on a busy one too.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from measure import RESULTS, ROOT, write_result

import danlu

PLACE = ROOT / ".bench" / "sentiment"
PYTHON = PLACE / "venv" / "bin" / "python"
LOCK = ROOT / "bench" / "sentiment_requirements.txt"
JUDGED = {"zh": ("char", "accuracy"), "en": ("word", "macro_f1")}
"""What the rival counts, and what decides."""


def main() -> int:
    given = dict(argument[2:].split("=", 1) for argument in sys.argv[1:] if argument.startswith("--"))
    seeds = [int(seed) for seed in given.get("seeds", "17").split(",")]
    path = RESULTS / "sentiment.json"
    runs: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else {}
    set_up()
    for language in [given["only"]] if "only" in given else JUDGED:
        runs[language] = measured(language, seeds)
        write_result("sentiment", os.getloadavg()[0], runs, ratios(runs), ("tokenizers",))
        _, judge = JUDGED[language]
        ours = [run["test"][judge] for run in runs[language]["ours"].values()]
        theirs = runs[language]["tfidf"]["test"][judge]
        print(f"{language}: {judge} {statistics.mean(ours):.4f} of {len(ours)} seeds, TF-IDF {theirs:.4f}")
    print(f"written to {path.relative_to(ROOT)}")
    return 0


def measured(language: str, seeds: list[int]) -> dict[str, Any]:
    """One recipe with every seed, and the rival on its rows."""
    ours: dict[str, Any] = {}
    rows = Path()
    for seed in seeds:
        result = danlu.run(ROOT / "recipes" / f"sentiment_{language}.yaml", f"seed={seed}", store=PLACE / "home")
        metrics = result.artifacts["classifier"].manifest.metrics
        rows = result.artifacts["rows"].path
        kept = ("steps", "train_tokens_per_s", "best_step", "lean", "validation", "test")
        ours[str(seed)] = {name: metrics[name] for name in kept if name in metrics}
    command = [str(PYTHON), str(ROOT / "bench" / "sentiment_tfidf.py"), str(rows), *JUDGED[language]]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {"judge": JUDGED[language][1], "ours": ours, "tfidf": json.loads(done.stdout)}


def ratios(runs: dict[str, Any]) -> dict[str, float]:
    """Mean score of our seeds over the rival's: above 1 ours is better."""
    found: dict[str, float] = {}
    for language, run in runs.items():
        judge = JUDGED[language][1]
        mean = statistics.mean(one["test"][judge] for one in run["ours"].values())
        found[f"sentiment_{language}_{judge}"] = round(mean / run["tfidf"]["test"][judge], 4)
    return found


def set_up() -> None:
    """The rival's environment, once."""
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PYTHON.parent.parent)], check=True)
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--no-deps", "--progress-bar", "off", "-r", str(LOCK)]
    subprocess.run(pip, check=True)


if __name__ == "__main__":
    sys.exit(main())
