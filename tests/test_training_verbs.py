"""danlu train, check, plan and finetune as a user runs them, on a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from danlu.flow.check import check_splits
from danlu.flow.probe import find_subject
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


def test_two_processes_make_one_artifact_with_the_same_losses(recipe: Path, home: Path) -> None:
    danlu("train", recipe, "train.steps=6", "train.precision=fp32", "--home", home)
    one = resolve(Store(home), "tuned")
    words = ("train.steps=6", "train.precision=fp32", "train.save_every=6", "--nproc", "2")
    command = [sys.executable, "-m", "danlu.cli.main", "train", str(recipe), *words, "--home", str(home)]
    for _ in range(3):  # gloo sometimes aborts a process that leaves when all is done; the same command goes on
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr
    two = resolve(Store(home), "tuned")
    assert one.id != two.id
    losses = [
        [json.loads(line)["loss"] for line in (found.path / "log.jsonl").read_text().splitlines() if '"loss"' in line]
        for found in (one, two)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert (two.path / "training.html").is_file()


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


def test_all_weights_get_a_rate_of_their_own(tiny_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "response": "b"}\n')
    danlu("finetune", tiny_folder, data, "steps=7", "--full", "--dry-run", "--home", tmp_path / "home")
    text = (tmp_path / "home" / "recipes" / "rows-sft.yaml").read_text()
    assert "lora: null" in text
    assert "learning_rate: 0.0001" in text
    assert "steps: 7" in text
    assert "epochs: null" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "No recipe is given. For example: danlu train"),
        (["train", "check"], "No recipe is given"),
        (["train", "plan", "{recipe}", "--stage", "data"], "'data' is not a training stage"),
        (["finetune", "m", "missing.jsonl"], "missing.jsonl does not exist"),
        (["finetune", "m", "{recipe}", "--task", "clasify"], "task is 'clasify'. Did you mean 'classify'?"),
        (["finetune", "m", "{recipe}", "--lora", "--full"], "--lora and --full are both given"),
        (["finetune", "{model}", "{recipe}", "--columns", "text"], "columns has 'text'. Write ours=yours"),
    ],
)
def test_wrong_words_are_told(words: list[str], message: str, recipe: Path, home: Path, tiny_folder: Path) -> None:
    filled = [word.format(recipe=recipe, model=tiny_folder) for word in words]
    command = [sys.executable, "-m", "danlu.cli.main", *filled, "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode in (1, 2)
    assert message in " ".join((done.stderr + done.stdout).split())
