"""A recipe on a tiny model and a few compared answers, for the stages that learn from opinions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from danlu.core.events import Silent
from danlu.flow.run import run
from danlu.lineage.store import Artifact, Store
from tests.train.opinions import pairs

RECIPE = """
name: opinions
seed: 3
stages:
  - {{name: base, use: fetch, path: {model}}}
  - {{name: rows, use: fetch, path: {rows}}}
{stages}
"""


def make(
    folder: Path, model: Path, stages: str, train: Sequence[Mapping[str, Any]] | None = None
) -> Mapping[str, Artifact]:
    """The artifacts of a recipe with these stages after ``base`` and ``rows``; ``train`` are other training rows."""
    rows = folder / "rows"
    rows.mkdir()
    for name, some in (("train", train or pairs(20)[4:]), ("validation", pairs(4))):
        (rows / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=model, rows=rows, stages=stages))
    return run(recipe, store=Store(folder / "store"), display=Silent()).artifacts
