from pathlib import Path

import pytest

from danlu.core.errors import StoreError
from danlu.lineage.runs import RunRecord, StageRecord, latest_run, open_run, read_run, resolve, runs
from danlu.lineage.store import Store

from .conftest import Bench


def record(identifier: str) -> RunRecord:
    stages = (StageRecord(name="a", use="write"), StageRecord(name="b", use="write"))
    return RunRecord(id=identifier, recipe="r", path="r.yaml", stages=stages)


def test_a_run_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with open_run(store, record("1")) as log:
        log.update_stage("b", status="done", artifact="abc", seconds=1.5)
        log.update(status="done")
    assert read_run(store, "1") == log.record
    assert log.record.artifacts() == {"b": "abc"}


def test_a_run_is_running_while_its_process_lives_and_stopped_after(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with open_run(store, record("1")):
        assert read_run(store, "1").status == "running"
    assert read_run(store, "1").status == "stopped"


def test_runs_come_oldest_first_and_latest_is_the_last(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for identifier in ("20250102-x", "20250101-x"):
        with open_run(store, record(identifier)):
            pass
    assert [run.id for run in runs(store)] == ["20250101-x", "20250102-x"]
    latest = latest_run(store)
    assert latest is not None
    assert latest.id == read_run(store, "latest").id == "20250102-x"


def test_a_stage_of_the_latest_run_names_its_artifact(bench: Bench) -> None:
    artifact, _ = bench.make()
    with open_run(bench.store, record("1")) as log:
        log.update_stage("a", status="done", artifact=artifact.id)
    assert resolve(bench.store, "a").id == artifact.id


def test_an_unknown_run_and_a_damaged_one_say_so(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="There is no run 'x'"):
        read_run(store, "x")
    (tmp_path / "runs" / "1").mkdir(parents=True)
    (tmp_path / "runs" / "1" / "run.json").write_text("{")
    with pytest.raises(StoreError, match=r"run\.json is damaged: .* artifacts stay"):
        read_run(store, "1")
    for identifier in ("20-a", "20-b"):
        with open_run(store, record(identifier)):
            pass
    with pytest.raises(StoreError, match=r"'20' fits 2 runs: 20-a, 20-b\. Give more of it"):
        read_run(store, "20")
