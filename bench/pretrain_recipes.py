"""The pre-training recipes, run whole in a fresh home: minutes of each stage, bits per byte beside xz and n-grams.

    make bench-pretrain-recipes                    ARGS="--anyway --only=en" on a busy machine, or for one of them

Writes bench/results/pretrain_recipes.json (machine, versions, the recipes' own summaries, a few samples) after each
recipe, so that one of them may be run again alone. Downloads are kept from earlier runs and are not counted. Refuses to
start on a busy machine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measure import RESULTS, ROOT, refuse_when_busy, write_result

import danlu
from danlu.core.records import GenerateOptions
from danlu.flow.recipe import load_recipe
from danlu.models.loaded import LoadedModel

HOME = ROOT / ".bench" / "pretrain"
DANLU = Path(sys.executable).with_name("danlu")
PROMPTS = {
    "en": ("This package contains", "To the Congress of the United States:\n", "He looked at"),
    "zh": ("春日\n", "江上送别\n", "话说曹操"),
}
OPTIONS = GenerateOptions(max_tokens=48, temperature=0.7, top_p=0.9, seed=17)


def main() -> int:
    load = refuse_when_busy()
    chosen = [argument.removeprefix("--only=") for argument in sys.argv if argument.startswith("--only=")]
    path = RESULTS / "pretrain_recipes.json"
    runs: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() and chosen else {}
    for language in chosen or PROMPTS:
        runs[language] = {"load_before": round(load, 2), **measured(language)}
        write_result("pretrain_recipes", load, runs, ratios(runs), ("tokenizers",))
        print_scores(language, runs[language])
    print(f"written to {path.relative_to(ROOT)}")
    return 0


def measured(language: str) -> dict[str, Any]:
    """One recipe in a fresh home: wall-clock, what it says of itself, samples of its model."""
    home = HOME / language
    kept = HOME / "cache"
    if (home / "cache").is_dir():
        shutil.copytree(home / "cache", kept, dirs_exist_ok=True)
    shutil.rmtree(home, ignore_errors=True)
    for known in (ROOT / ".danlu" / "cache", kept):
        if known.is_dir():
            shutil.copytree(known, home / "cache", dirs_exist_ok=True)
    recipe = ROOT / "recipes" / f"pretrain_{language}.yaml"
    started = time.perf_counter()
    subprocess.run([str(DANLU), "run", str(recipe), "--home", str(home)], cwd=ROOT, check=True)
    wall_s = round(time.perf_counter() - started, 1)
    (base,) = (stage.config for stage in load_recipe(recipe).stages if stage.name == "base")
    return {
        "wall_s": wall_s,
        "tokens_read": base.steps * base.tokens_per_step,
        "summary": json.loads((home / f"pretrain_{language}.json").read_text(encoding="utf-8")),
        "samples": samples(f"base-{language}", home, PROMPTS[language]),
    }


def samples(model: str, home: Path, prompts: tuple[str, ...]) -> list[dict[str, str]]:
    """How the model goes on, drawn with a fixed seed."""
    loaded = danlu.load(model, home)
    assert isinstance(loaded, LoadedModel)
    return [{"prompt": prompt, "text": loaded.generate([prompt], OPTIONS)[0].text} for prompt in prompts]


def ratios(runs: dict[str, Any]) -> dict[str, float]:
    """Bits of each rival over the model's: above 1 the model wins."""
    found: dict[str, float] = {}
    for language, run in runs.items():
        scores = run["summary"]["scores"]
        for rival in ("xz", "kneser_ney"):
            found[f"{rival}_vs_{language}"] = round(scores[rival] / scores["model"], 3)
    return found


def print_scores(language: str, run: dict[str, Any]) -> None:
    """What matters, in a few lines."""
    scores = run["summary"]["scores"]
    rivals = ", ".join(f"order {order} {bits:.3f}" for order, bits in scores["kneser_ney_of_order"].items())
    print(f"{language}: {run['wall_s'] / 60:.1f} min; model {scores['model']:.3f}, xz {scores['xz']:.3f}, {rivals}")
    for sample in run["samples"]:
        print(f"  {sample['prompt']!r} → {sample['text']!r}")


if __name__ == "__main__":
    sys.exit(main())
