import json
import os
import signal
import subprocess
import sys
from glob import glob
from pathlib import Path

import pytest

import danlu
from danlu.core.errors import ConfigError, ResourceError
from danlu.flow.recipe import load_recipe
from danlu.lineage.runs import read_run, runs

from .conftest import RECIPE, Kitchen


def test_a_run_makes_every_stage_and_sets_its_aliases(kitchen: Kitchen) -> None:
    result = kitchen.run()
    assert (result.artifacts["third"].path / "text.txt").read_text() == "c b a"
    assert kitchen.store.resolve("best").id == result.artifacts["third"].id
    assert [stage.status for stage in result.record.stages] == ["done", "done", "done"]
    assert result.record.status == "done"
    assert read_run(kitchen.store, result.id) == result.record
    assert result.record.peak_rss_bytes > 10_000_000


def test_running_again_calls_no_stage(kitchen: Kitchen) -> None:
    first = kitchen.run()
    num_calls = len(kitchen.calls)
    second = kitchen.run()
    assert len(kitchen.calls) == num_calls == 3
    assert second.reused == {"first", "second", "third"}
    assert {n: a.id for n, a in first.artifacts.items()} == {n: a.id for n, a in second.artifacts.items()}
    assert [stage.status for stage in second.record.stages] == ["reused"] * 3


def test_changing_a_stage_reruns_it_and_what_follows_only(kitchen: Kitchen) -> None:
    kitchen.run()
    assert kitchen.run("second.text=B").reused == {"first"}
    assert kitchen.run("third.steps=11").reused == {"first", "second"}
    assert kitchen.run().reused == {"first", "second", "third"}


def test_the_seed_reruns_only_the_stages_that_use_it(kitchen: Kitchen) -> None:
    text = "name: t\nstages: [{name: a, use: write}, {name: b, use: plain}]"
    kitchen.plugins["plain"] = type("Plain", (type(kitchen.plugins["write"]),), {"uses_seed": False})()
    kitchen.run(text=text)
    assert kitchen.run("seed=5", text=text).reused == {"b"}


def test_a_damaged_artifact_is_made_again_and_what_follows_is_kept(kitchen: Kitchen) -> None:
    path = kitchen.run().artifacts["first"].path
    (path / "text.txt").unlink()
    assert kitchen.run().reused == {"second", "third"}
    assert any("text.txt is missing" in line for line in kitchen.display.lines)
    kitchen.store.verify(path.name)


def test_nothing_runs_when_a_later_stage_is_misconfigured(kitchen: Kitchen) -> None:
    with pytest.raises(ConfigError, match=r"third: steps is 0"):
        kitchen.run("third.steps=0")
    assert kitchen.calls == []
    assert runs(kitchen.store) == []


def test_a_failed_stage_is_recorded_and_the_next_run_goes_on_from_there(kitchen: Kitchen) -> None:
    with pytest.raises(ResourceError, match="The oven is cold"):
        kitchen.run("second.fail=The oven is cold.")
    record = runs(kitchen.store)[-1]
    assert (record.status, record.error) == ("failed", "second: The oven is cold.")
    assert [stage.status for stage in record.stages] == ["done", "failed", "waiting"]
    assert any("the same command goes on from here" in line for line in kitchen.display.lines)
    assert kitchen.run().reused == {"first"}


def test_an_interrupted_run_is_recorded_as_such(kitchen: Kitchen) -> None:
    with pytest.raises(KeyboardInterrupt):
        kitchen.run("second.fail=interrupt")
    record = runs(kitchen.store)[-1]
    assert (record.status, record.stages[1].status) == ("interrupted", "interrupted")


SERVICE = "name: t\nstages: [{name: a, use: write}, {name: s, use: serve, inputs: {m: a}, text: serving}]"


def test_a_service_runs_last_and_only_when_asked_for(kitchen: Kitchen) -> None:
    skipped = kitchen.run(text=SERVICE)
    assert "serving" not in kitchen.calls
    assert read_run(kitchen.store, skipped.id).stages[-1].status == "skipped"
    served = kitchen.run(text=SERVICE, serve=True)
    assert "serving" in kitchen.calls
    assert read_run(kitchen.store, served.id).stages[-1].status == "done"
    assert "s" not in served.artifacts


def test_what_a_service_needs_is_checked_before_the_first_stage(kitchen: Kitchen) -> None:
    with pytest.raises(ResourceError, match="Port 8000 is in use"):
        kitchen.run("s.text=taken", text=SERVICE, serve=True)
    assert kitchen.calls == []
    kitchen.run("s.text=taken", text=SERVICE)


def test_stopping_a_service_ends_the_run_well(kitchen: Kitchen) -> None:
    result = kitchen.run("s.fail=interrupt", text=SERVICE, serve=True)
    assert read_run(kitchen.store, result.id).status == "done"


SUMMARY = RECIPE + "summary: {path: numbers.json, values: {length: first.length}}\n"


def test_the_summary_keeps_the_numbers_also_when_nothing_was_to_do(kitchen: Kitchen) -> None:
    path = kitchen.store.root / "numbers.json"
    kitchen.run(text=SUMMARY)
    first = json.loads(path.read_text())
    kitchen.run(text=SUMMARY)
    second = json.loads(path.read_text())
    assert first["length"] == second["length"] == 1
    assert first["seconds"] == second["seconds"]
    assert first["peak_rss_bytes"] == second["peak_rss_bytes"] > 0


def test_events_of_a_run_are_kept_as_json_lines(kitchen: Kitchen) -> None:
    result = kitchen.run()
    path = kitchen.store.root / "runs" / result.id / "events.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    done = [e["name"] for e in events if e["event"] == "stage" and e["status"] == "done"]
    assert done == ["first", "second", "third"]
    assert [e["done"] for e in events if e["event"] == "bar"] == [10, 10, 10]


def test_the_grid_factor_of_the_recipe_is_in_every_manifest(kitchen: Kitchen) -> None:
    result = kitchen.run("grid_kg_per_kwh=0.05")
    assert {a.manifest.cost.energy.grid_kg_per_kwh for a in result.artifacts.values()} == {0.05}


KILLED = """
name: killed
stages:
  - {{name: first, use: script, command: [python, -c, "open(r'{{output}}/a', 'w').write('a')"]}}
  - {{name: slow, use: script, inputs: {{x: first}}, command: [python, {script}, "{{work}}", "{{output}}"]}}
"""
SLOW = """
import sys, time, pathlib
work, output = map(pathlib.Path, sys.argv[1:])
steps = work / "steps"
done = steps.read_text() if steps.exists() else ""
(output / "partial").write_text("partial")
for step in "012345"[len(done):]:
    done += step
    steps.write_text(done)
    print("step", step)
    if step == "2":
        time.sleep(0 if (work / "again").exists() else [(work / "again").write_text(""), 20][1])
(output / "partial").unlink()
(output / "result").write_text(done)
"""


def test_kill_9_in_the_middle_of_a_stage_and_the_same_command_finishes_it(tmp_path: Path) -> None:
    script, recipe, home = tmp_path / "slow.py", tmp_path / "killed.yaml", tmp_path / "home"
    script.write_text(SLOW)
    recipe.write_text(KILLED.format(script=script))
    command = [sys.executable, "-m", "danlu.cli.main", "run", str(recipe), "--home", str(home)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        while not glob(
            os.path.join(home, "work", "*", "work", "again")
        ):  # unlike pathlib it bears folders that vanish under it
            assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    store = danlu.run(recipe, store=home).store
    first, second = runs(store)
    assert (first.status, [s.status for s in first.stages]) == ("stopped", ["done", "running"])
    assert (second.status, [s.status for s in second.stages]) == ("done", ["reused", "done"])
    artifact = store.verify(second.artifacts()["slow"])
    assert (artifact.path / "result").read_text() == "012345"
    assert list(artifact.manifest.files) == ["result"]
    assert artifact.manifest.cost.attempts == 2


def test_the_projects_recipes_are_valid(root: Path) -> None:
    recipes = sorted((root / "recipes").glob("*.yaml"))
    for path in recipes:
        load_recipe(path)
