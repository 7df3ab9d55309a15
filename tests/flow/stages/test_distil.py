"""A recipe that makes a model shorter and lets it learn from what it was."""

import json
from pathlib import Path

import pytest

from danlu.core.errors import ConfigError, TrainError
from danlu.core.events import Silent
from danlu.flow.run import run
from danlu.lineage.store import Store
from danlu.models.load import load_model

from ...models.peer import save_llama
from ...train.chats import chats

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = """
name: tiny
seed: 3
stages:
  - {name: weights, use: fetch, path: FOLDER/teacher}
  - {name: rows, use: fetch, path: FOLDER/rows}
  - name: short
    use: distil
    inputs: {teacher: weights, data: rows}
    keep_layers: 2
    steps: 6
    kept_answers: 16
    max_row_tokens: 80
    tokens_per_step: 160
    optim: {learning_rate: 1.0e-3}
  - name: again
    use: distil
    inputs: {teacher: weights, student: short, data: rows}
    steps: 3
    max_row_tokens: 80
    tokens_per_step: 160
    lora: {rank: 2}
"""


def write(folder: Path) -> Path:
    save_llama(folder / "teacher", num_hidden_layers=4, initializer_range=0.15)
    (folder / "rows").mkdir()
    for name, rows in (("train", chats(20)), ("validation", chats(24)[20:])):
        (folder / "rows" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "recipe.yaml").write_text(RECIPE.replace("FOLDER", str(folder)))
    return folder / "recipe.yaml"


def test_a_recipe_makes_a_shorter_model_that_learns_on(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    result = run(write(tmp_path), store=store, display=Silent())
    short, again = result.artifacts["short"], result.artifacts["again"]
    metrics = short.manifest.metrics
    assert load_model(short.path).config.num_layers == 2
    assert metrics["parameters"] < metrics["teacher_parameters"]
    assert set(metrics["validation"]) == {"loss", "kl", "next_token_loss", "agreement"}
    assert (short.path / "training.html").is_file()
    assert len(list((store.root / "cache" / "teacher").iterdir())) == 1
    assert load_model(again.path).config.num_layers == 2
    assert "merged_change" in again.manifest.metrics


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("again.keep_layers=1",), r"keep_layers is 1, but there is a student"),
        (("short.keep_layers=null",), r"There is no student\. Give the input student, or keep_layers"),
    ],
)
def test_a_student_has_one_origin(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(write(tmp_path), *overrides, store=Store(tmp_path / "store"), display=Silent())


def test_a_teacher_is_no_student_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text().replace("student: short", "student: weights"))
    with pytest.raises(ConfigError, match="Student and teacher are the same model"):
        run(path, store=Store(tmp_path / "store"), display=Silent())


def test_rows_that_are_trained_on_and_watched_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "rows" / "validation.jsonl").write_text((tmp_path / "rows" / "train.jsonl").read_text())
    with pytest.raises(TrainError, match="100% of the validation rows are training rows too"):
        run(path, store=Store(tmp_path / "store"), display=Silent())
