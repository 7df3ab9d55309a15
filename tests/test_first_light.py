"""The closed path: reviews in, a tuned, compressed, served model out, on a tiny model in seconds, as a user runs it."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path

import pytest

import danlu
from danlu.flow.run import RunResult
from danlu.lineage.runs import runs
from danlu.lineage.store import Store
from tests.tiny import write_shop

RECIPE = """
name: first_light
seed: 5
stages:
  - {{name: reviews, use: fetch, path: {shop}}}
  - {{name: weights, use: fetch, path: {model}}}
  - {{name: data, use: prepare, inputs: {{rows: reviews}}, split: {{test_products: 16, validation_products: 3}}}}
  - {{name: base, use: convert, inputs: {{weights: weights}}}}
  - {{name: base_scores, use: evaluate, inputs: {{model: base, data: data}}, evaluate: {{max_tokens: 24}}}}
  - name: train
    use: sft
    inputs: {{model: base, data: data}}
    steps: 30
    save_every: 5
    optim: {{learning_rate: 1.0e-2}}
  - {{name: tuned, use: merge, inputs: {{model: base, adapter: train}}}}
  - {{name: tuned_scores, use: evaluate, inputs: {{model: tuned, data: data}}, evaluate: {{max_tokens: 24}}}}
  - {{name: tuned_vs_base, use: compare, inputs: {{baseline: base_scores, candidate: tuned_scores}}}}
  - {{name: int8, use: quantize, inputs: {{model: tuned, data: data}}}}
  - {{name: int8_scores, use: evaluate, inputs: {{model: int8, data: data}}, evaluate: {{max_tokens: 24}}}}
  - name: report
    use: report
    inputs: {{data: data, train: train, base: base_scores, tuned: tuned_scores, int8: int8_scores}}
  - {{name: serve, use: serve, inputs: {{model: int8}}, model_name: tiny-copy, http: {{port: 0}}}}
aliases: {{tiny-copy: int8}}
summary:
  path: numbers.json
  values: {{rows_in: data.rows_in, tuned: tuned_scores, p_bleu4: tuned_vs_base.bleu4.p_higher}}
"""
AFTER_TRAINING = {"train", "tuned", "tuned_scores", "tuned_vs_base", "int8", "int8_scores", "report"}
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # `python` is danlu's own
}
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("first-light")
    path = folder / "first_light.yaml"
    path.write_text(RECIPE.format(shop=write_shop(folder / "reviews.csv"), model=tiny_folder))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def finished(recipe: Path, home: Path, one_thread: None) -> RunResult:
    """The recipe run once, uninterrupted."""
    return danlu.run(recipe, store=home)


def command(recipe: Path, home: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "danlu.cli.main", "run", str(recipe), "--home", str(home), *more]


@contextmanager
def serving(recipe: Path, home: Path) -> Iterator[list[str]]:
    """The lines that `danlu run` says, once it serves; Ctrl-C must end it well."""
    process = subprocess.Popen(command(recipe, home), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stderr is not None
    try:
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line.rstrip("\n"))
            if line.startswith("  python -c "):
                break
        yield lines
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(20) == 0, rest
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_every_stage_is_made_and_the_tuned_model_is_better(finished: RunResult, home: Path) -> None:
    metrics = {name: artifact.manifest.metrics for name, artifact in finished.artifacts.items()}
    assert metrics["data"]["rows_in"] == 400
    assert metrics["data"]["rows_in"] == metrics["data"]["rows_kept"] + sum(metrics["data"]["dropped"].values())
    assert metrics["train"]["last_loss"] < metrics["train"]["first_loss"] - 1
    assert metrics["tuned_vs_base"]["chrf"]["difference"] > 0
    assert metrics["tuned_vs_base"]["chrf"]["p_higher"] < 0.05
    assert metrics["int8_scores"]["size_bytes"] < 0.45 * metrics["tuned_scores"]["size_bytes"]
    numbers = json.loads((home / "numbers.json").read_text())
    assert numbers["rows_in"] == 400
    assert numbers["seconds"].keys() == finished.artifacts.keys()
    assert numbers["peak_rss_bytes"] > 50_000_000
    assert (finished.artifacts["report"].path / "report.html").stat().st_size > 10_000


def test_running_again_does_nothing(finished: RunResult, recipe: Path, home: Path) -> None:
    started = time.perf_counter()
    again = danlu.run(recipe, store=home)
    assert again.reused == finished.artifacts.keys()
    assert time.perf_counter() - started < 2


def test_changing_training_reruns_it_and_what_follows_only(finished: RunResult, recipe: Path, home: Path) -> None:
    changed = danlu.run(recipe, "train.steps=4", store=home)
    assert changed.artifacts.keys() - changed.reused == AFTER_TRAINING
    assert danlu.run(recipe, store=home).reused == finished.artifacts.keys()


def test_the_finished_model_loads_by_its_alias_and_traces_back_to_the_files(finished: RunResult, home: Path) -> None:
    model = danlu.load("tiny-copy", home)
    answer = model.generate([[{"role": "user", "content": "Write product copy.\nTitle: navy silk dress"}]])[0]
    assert answer.usage.completion_tokens > 0
    seen, left = set[str](), [finished.artifacts["int8"]]
    while left:
        artifact = left.pop()
        seen.add(artifact.manifest.name)
        left += [finished.store.get(i) for i in artifact.manifest.origin.inputs.values()]
    assert seen == {"int8", "tuned", "base", "weights", "train", "data", "reviews"}


def test_the_served_model_answers_the_very_lines_that_were_printed(
    finished: RunResult, recipe: Path, home: Path
) -> None:
    """Pasted into a shell: the curl line, and the Python line with the official client."""
    with serving(recipe, home) as lines:
        assert sum("reused" in line or "✓" in line for line in lines) >= 12
        (url,) = re.findall(r"Serving tiny-copy at (http://127\.0\.0\.1:\d+) ", "\n".join(lines))
        curl, python = lines[-2:]
        assert shlex.split(curl)[:2] == ["curl", f"{url}/v1/chat/completions"]
        pasted = [
            [
                subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=ENVIRONMENT, check=False)
                for _ in range(3)  # answers are drawn, and a tiny model may draw the end at once
            ]
            for line in (curl, python)
        ]
    assert all(done.returncode == 0 for tries in pasted for done in tries), [t[0].stderr for t in pasted]
    replies = [json.loads(done.stdout) for done in pasted[0]]
    assert all(reply["model"] == "tiny-copy" and reply["usage"]["completion_tokens"] > 0 for reply in replies)
    assert any(reply["choices"][0]["message"]["content"] for reply in replies)
    assert any(done.stdout.strip() for done in pasted[1])
    assert runs(Store(home))[-1].status == "done"


def test_kill_9_in_mid_training_and_the_same_command_ends_with_the_same_model(
    finished: RunResult, recipe: Path, tmp_path: Path
) -> None:
    home = tmp_path / "killed"
    process = subprocess.Popen(
        command(recipe, home, "--no-serve"), stderr=subprocess.DEVNULL, env=ENVIRONMENT, start_new_session=True
    )
    try:
        while not glob(os.path.join(home, "work", "*", "work", "step-0*")):
            assert process.poll() is None
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    steps = sorted(Path(path).name for path in glob(os.path.join(home, "work", "*", "work", "step-0*")))
    assert steps
    assert "step-00000030" not in steps, "it was killed too late to prove anything"
    resumed = danlu.run(recipe, store=home)
    assert resumed.artifacts["train"].manifest.cost.attempts == 2
    assert {"reviews", "weights", "data", "base", "base_scores"} <= resumed.reused
    for name in ("tuned", "int8"):
        assert resumed.artifacts[name].manifest.files == finished.artifacts[name].manifest.files
    for name, path in (("tuned_scores", "samples.jsonl"), ("train", "adapter_model.safetensors")):
        one, other = (r.artifacts[name].manifest.files[path] for r in (resumed, finished))
        assert one == other


def test_a_port_in_use_is_told_before_the_first_stage_and_does_not_matter_without_serving(
    recipe: Path, home: Path, tmp_path: Path, finished: RunResult
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = command(recipe, tmp_path / "untouched", f"serve.http.port={port}")
        done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, check=False)
        assert done.returncode == 1
        assert done.stderr == (
            f"error: Port {port} on 127.0.0.1 is in use. Stop the program that uses it, "
            f"or set another port, such as {port + 1}.\n"
        )
        assert not (tmp_path / "untouched").exists()
        assert danlu.run(recipe, f"serve.http.port={port}", store=home).reused == finished.artifacts.keys()
