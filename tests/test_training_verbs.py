"""danlu train, check, plan and finetune as a user runs them, on a tiny model."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from danlu.cli.finetune import command
from danlu.core.errors import ConfigError
from danlu.flow.check import check_splits
from danlu.flow.probe import find_subject
from danlu.flow.recipe import load_recipe
from danlu.lineage.runs import resolve
from danlu.lineage.store import Store
from tests.test_first_light import RECIPE
from tests.tiny import write_shop

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """The first-light recipe up to its training stage."""
    folder = tmp_path_factory.mktemp("verbs")
    text = RECIPE.format(shop=write_shop(folder / "reviews.csv"), model=tiny_folder)
    path = folder / "recipe.yaml"
    path.write_text(text[: text.index("  - {name: tuned, use")] + "aliases: {tuned: train}\n")
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def danlu(*words: str | Path, status: int = 0) -> tuple[str, str]:
    """Standard output and error of one command line."""
    command = [sys.executable, "-m", "danlu.cli.main", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def test_check_proves_resume_and_splits_and_keeps_nothing(recipe: Path, home: Path) -> None:
    out, _ = danlu("train", "check", recipe, "--home", home)
    lines = out.splitlines()
    assert [line[0] for line in lines] == ["✓"] * 5
    assert lines[0].startswith("✓ killed after steps 3 and 6 and resumed, it has the losses of a run nobody stopped")
    assert "two processes: relative distance" in lines[3]
    kinds = {Store(home).get(identifier).manifest.kind for identifier in Store(home).ids()}
    assert "adapter" not in kinds


def test_check_fails_when_a_gradient_depends_on_the_split(recipe: Path, home: Path, tmp_path: Path) -> None:
    """Dropout in the adapter draws other masks for other micro-batches: the proof must see it."""
    subject = find_subject(recipe, ["train.lora.dropout=0.5"], Store(home), None)
    proof = next(check_splits(subject, tmp_path))
    assert "every row alone" in proof.name
    assert not proof.holds


def test_check_needs_enough_steps(recipe: Path, home: Path) -> None:
    _, said = danlu("train", "check", recipe, "train.steps=4", "--home", home, status=1)
    assert "'train' has 4 steps, and the check kills it after steps 3 and 6 of 8" in said


def test_plan_tries_a_few_settings_and_names_the_cheapest(recipe: Path, home: Path) -> None:
    out, _ = danlu("train", "plan", recipe, "--home", home)
    for name in ("as the recipe says", "half a step at once", "activations computed again", "Cheapest that fits"):
        assert name in out


def test_finetune_reads_your_rows_writes_a_recipe_and_trains(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"navy dress {i}", "input": "", "output": f"A navy dress, number {i}."} for i in range(60)]
    data = tmp_path / "my_rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    home = tmp_path / "home"
    words = ("finetune", tiny_folder, data, "steps=4", "lora.rank=2", "--lora", "--home", home)
    _, said = danlu(*words)
    assert "Done: 'my-rows-sft' is " in said
    artifact = resolve(Store(home), "my-rows-sft")
    assert json.loads((artifact.path / "adapter_config.json").read_text())["r"] == 2
    assert "Written by `danlu finetune`" in (home / "recipes" / "my-rows-sft.yaml").read_text()
    _, again = danlu("run", home / "recipes" / "my-rows-sft.yaml", "--home", home)
    assert "0 made, 5 reused" in again


def test_the_recipe_of_finetune_leaves_rate_and_length_to_the_task(tiny_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "response": "b"}\n')
    danlu("finetune", tiny_folder, data, "steps=7", "--full", "--dry-run", "--home", tmp_path / "home")
    path = tmp_path / "home" / "recipes" / "rows-sft.yaml"
    assert "lora: null\n  steps: 7\n" in path.read_text()
    trains = load_recipe(path).stages[-1].config
    assert (trains.steps, trains.epochs, trains.optim.learning_rate) == (7, None, 1e-4)


def test_finetune_writes_over_its_own_recipe_but_not_over_an_edited_one(tiny_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "response": "b"}\n')
    build = functools.partial(command, str(tiny_folder), data, name="mine", dry_run=True, home=tmp_path / "home")
    path = tmp_path / "home" / "recipes" / "mine.yaml"
    for steps in (7, 8):
        assert build((f"steps={steps}",)) == 0
    edited = path.read_text().replace("steps: 8", "steps: 9")
    path.write_text(edited)
    with pytest.raises(ConfigError, match=r"mine\.yaml is not as `danlu finetune` left it, .* or give another --name"):
        build(("steps=7",))
    assert path.read_text() == edited
    assert build(("steps=9",)) == 0  # the same settings: there is nothing to lose
    assert build(("steps=7",), name="other") == 0


def test_settings_may_follow_the_columns(tiny_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("review,stars\ngood,5\n")
    columns = ("--columns", "text=review", "label=stars", "epochs=3", "optim.learning_rate=1e-3")
    danlu("finetune", tiny_folder, data, "--task", "classify", *columns, "--dry-run", "--home", tmp_path / "home")
    *_, read, trains = load_recipe(tmp_path / "home" / "recipes" / "rows-classify.yaml").stages
    assert read.config.columns == {"text": "review", "label": "stars"}
    assert (trains.config.epochs, trains.config.optim.learning_rate) == (3.0, 1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "No recipe is given. For example: danlu train"),
        (["train", "check"], "No recipe is given"),
        (["train", "plan", "{recipe}", "--stage", "data"], "'data' is not a training stage"),
        (["finetune", "m", "missing.jsonl"], "missing.jsonl does not exist"),
        (["finetune", "{empty}", "{recipe}"], "holds no model: no config.json and no .gguf file"),
        (["finetune", "{recipe}", "{recipe}"], "is no model. Give a folder with config.json, or a .gguf file"),
        (["finetune", "{model}", "{empty}"], "is an empty folder. Give a file of rows"),
        (["finetune", "{model}", "{blank}"], "is empty (0 bytes). Give a file with rows"),
        (["finetune", "m", "{recipe}", "--task", "clasify"], "task is 'clasify'. Did you mean 'classify'?"),
        (["finetune", "m", "{recipe}", "--lora", "--full"], "--lora and --full are both given"),
        (["finetune", "{model}", "{recipe}", "--columns", "text"], "columns has 'text'. Write ours=yours"),
    ],
)
def test_wrong_words_are_told(
    words: list[str], message: str, recipe: Path, home: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "blank.jsonl").touch()
    (tmp_path / "empty").mkdir()
    places = {"recipe": recipe, "model": tiny_folder, "empty": tmp_path / "empty", "blank": tmp_path / "blank.jsonl"}
    filled = [word.format(**places) for word in words]
    command = [sys.executable, "-m", "danlu.cli.main", *filled, "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode in (1, 2)
    assert message in " ".join((done.stderr + done.stdout).split())
