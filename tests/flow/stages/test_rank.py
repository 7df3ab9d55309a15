"""From a table of what users did to a recommender that answers, with what it had to beat."""

import json
from pathlib import Path

import pytest

import danlu
from danlu.core.errors import DataError
from danlu.core.events import Silent
from danlu.flow.run import run
from danlu.lineage.store import Store
from danlu.models.loaded import LoadedModel

from ...train.shoppers import shopping

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = """
name: tiny
seed: 3
stages:
  - {name: rows, use: fetch, path: FOLDER/rows.jsonl}
  - name: recommender
    use: rank
    inputs: {data: rows}
    columns: {user: who}
    width: 16
    max_items: 8
    epochs: 30
    rows_per_step: 20
    validate_every: 20
    optim: {learning_rate: 1.0e-2}
"""


def write(folder: Path, user: str = "who") -> Path:
    rows = [{user if key == "user" else key: value for key, value in row.items()} for row in shopping()]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "recipe.yaml").write_text(RECIPE.replace("FOLDER", str(folder)))
    return folder / "recipe.yaml"


def test_a_recipe_makes_a_recommender_that_beats_its_baselines(tmp_path: Path) -> None:
    result = run(write(tmp_path), store=Store(tmp_path / "store"), display=Silent())
    made = result.artifacts["recommender"]
    metrics = made.manifest.metrics
    assert metrics["test"]["ndcg_at_10"] > 0.9
    assert metrics["test_popularity"]["ndcg_at_10"] < 0.6
    assert metrics["test_item_knn"]["ndcg_at_10"] < 0.9
    assert metrics["users"] == 40
    assert metrics["cold_test"] == 0
    assert (made.path / "training.html").is_file()
    loaded = danlu.load(made.path)
    assert isinstance(loaded, LoadedModel)
    assert loaded.recommend([["100", "101", "102", "103"]], 1)[0][0].item == "104"


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no column 'who'\..*user"):
        run(write(tmp_path, user="user"), store=Store(tmp_path / "store"), display=Silent())
