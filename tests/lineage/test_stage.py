import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import ResourceError, StoreError
from danlu.lineage.stage import StageContext
from danlu.lineage.store import Store

from .conftest import Bench


def test_the_same_inputs_are_made_once(bench: Bench) -> None:
    first, first_reused = bench.make()
    second, second_reused = bench.make()
    assert (first.id, first_reused, second_reused, bench.num_calls) == (second.id, False, True, 1)


@pytest.mark.parametrize("changes", [{"config": {"text": "x"}}, {"seed": 18}, {"version": 2}, {"stage": "other"}])
def test_anything_that_decides_the_result_makes_it_anew(bench: Bench, changes: dict[str, Any]) -> None:
    bench.make()
    assert not bench.make(**changes)[1]


def test_another_name_for_the_same_work_is_the_same_artifact(bench: Bench) -> None:
    assert bench.make()[0].id == bench.make(name="renamed")[0].id
    assert bench.num_calls == 1


def test_the_manifest_says_where_it_came_from_and_what_it_cost(bench: Bench) -> None:
    source, _ = bench.make("a")
    manifest = bench.make("b", inputs={"rows": source})[0].manifest
    assert manifest.origin.inputs == {"rows": source.id}
    assert manifest.metrics == {"length": 1}
    assert manifest.cost.energy.method in ("measured", "estimated")
    assert manifest.cost.energy.grid_kg_per_kwh == 0.48
    assert manifest.cost.seconds >= 0
    assert manifest.code.version
    assert manifest.host["num_cores"] >= 1


def test_the_scratch_folder_is_gone_once_published(bench: Bench) -> None:
    bench.make()
    assert list((bench.store.root / "work").iterdir()) == []


def test_a_failed_body_leaves_no_artifact_and_its_scratch_for_the_next_try(bench: Bench) -> None:
    def body(context: StageContext) -> dict[str, Any]:
        checkpoint = context.work / "checkpoint"
        assert not list(context.output.iterdir())
        if not checkpoint.exists():
            checkpoint.write_text("half")
            (context.output / "partial.txt").write_text("half")
            raise ValueError("boom")
        (context.output / "whole.txt").write_text(checkpoint.read_text() + " and half")
        return {}

    with pytest.raises(ValueError, match="boom"):
        bench.make(body=body)
    assert bench.store.ids() == []
    artifact, _ = bench.make(body=body)
    assert list(artifact.manifest.files) == ["whole.txt"]
    assert artifact.manifest.cost.attempts == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: (p / "text.txt").unlink(),
        lambda p: (p / "text.txt").write_text("he"),
        lambda p: (p / "manifest.json").write_text("{"),
        lambda p: (p / "manifest.json").unlink(),
    ],
)
def test_a_damaged_artifact_is_made_again_and_said_so(bench: Bench, damage) -> None:
    artifact, _ = bench.make()
    damage(artifact.path)
    again, is_reused = bench.make()
    assert (again.id, is_reused) == (artifact.id, False)
    bench.store.verify(again.id)
    assert bench.display.lines[-1].endswith("Making it again.")


def test_a_damaged_key_file_is_no_obstacle(bench: Bench) -> None:
    artifact, _ = bench.make()
    key = next((bench.store.root / "keys").iterdir())
    key.write_text("{")
    assert bench.make()[0].id == artifact.id


def test_a_stage_that_writes_nothing_is_an_error(bench: Bench) -> None:
    with pytest.raises(StoreError, match=r"Stage 'text' wrote no files\. Make it write"):
        bench.make(body=lambda context: {})


def test_a_link_in_the_output_is_refused(bench: Bench) -> None:
    def body(context: StageContext) -> dict[str, Any]:
        (context.output / "link").symlink_to("/etc/hostname")
        return {}

    with pytest.raises(StoreError, match="is a link; an artifact holds plain files only"):
        bench.make(body=body)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_as_such_whatever_library_met_it(bench: Bench, error: Exception) -> None:
    def body(context: StageContext) -> dict[str, Any]:
        (context.output / "half").write_text("half")
        raise error

    with pytest.raises(ResourceError, match=r"The disk is full: .* Free space or set DANLU_HOME"):
        bench.make(body=body)
    assert bench.store.ids() == []
    assert not bench.make()[1]


def test_two_builders_of_the_same_thing_build_it_once(bench: Bench) -> None:
    def slow(context: StageContext) -> dict[str, Any]:
        bench.num_calls += 1
        time.sleep(0.3)
        (context.output / "x").write_text("x")
        return {}

    results: list[tuple[str, bool]] = []

    def build() -> None:
        artifact, is_reused = bench.make(body=slow)
        results.append((artifact.id, is_reused))

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bench.num_calls == 1
    assert sorted(is_reused for _, is_reused in results) == [False, True, True]
    assert any("Another process is making 'text'" in line for line in bench.display.lines)


SLOW_STAGE = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import Bench

def body(context):
    done = len(list(context.work.iterdir()))
    (context.output / "partial").write_text("partial")
    for step in range(done, 6):
        (context.work / str(step)).write_text(str(step))
        print(step, flush=True)
        time.sleep({pause})
    (context.output / "partial").unlink()
    (context.output / "steps").write_text("".join(sorted(p.name for p in context.work.iterdir())))
    return {{"started_at": done}}

artifact, reused = Bench(Path({root!r})).make(body=body)
print("made", artifact.id, artifact.manifest.metrics["started_at"], reused, flush=True)
"""


def test_a_builder_killed_midway_goes_on_from_its_scratch(tmp_path: Path) -> None:
    def start(pause: float) -> subprocess.Popen[str]:
        code = SLOW_STAGE.format(tests=str(Path(__file__).parent), root=str(tmp_path), pause=pause)
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)

    process = start(pause=30)
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert Store(tmp_path).ids() == []
    output, _ = start(pause=0).communicate(timeout=30)
    word, identifier, started_at, is_reused = output.splitlines()[-1].split()
    artifact = Store(tmp_path).verify(identifier)
    assert (word, started_at, is_reused) == ("made", "1", "False")
    assert list(artifact.manifest.files) == ["steps"]
    assert (artifact.path / "steps").read_text() == "012345"


def test_dying_between_manifest_and_rename_loses_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def die(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        bench.make()
    monkeypatch.setattr(os, "rename", rename)
    assert bench.store.ids() == []
    artifact, is_reused = bench.make()
    assert (bench.num_calls, is_reused) == (1, True)
    bench.store.verify(artifact.id)
