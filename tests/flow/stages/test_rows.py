import json
from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import ConfigError, DataError
from danlu.core.events import Events
from danlu.core.files import read_jsonl, write_jsonl
from danlu.flow.stages.rows import RowsConfig, plugin
from danlu.lineage.stage import StageContext
from danlu.lineage.store import Store


def run(folder: Path, out: Path, config: RowsConfig, seed: int = 1) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    out.mkdir(parents=True)
    context = StageContext(
        inputs={"rows": folder}, output=out, work=out, seed=seed, events=Events(), store=Store(out / "s"), artifacts={}
    )
    metrics = plugin.run(config, context)
    return metrics, {path.stem: list(read_jsonl(path)) for path in out.glob("*.jsonl")}


@pytest.fixture
def one_file(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    write_jsonl(folder / "mine.jsonl", [{"prompt": f"q{i}", "response": f"a{i}"} for i in range(400)])
    return folder


def test_a_file_is_split_by_content_and_seed_alone(one_file: Path, tmp_path: Path) -> None:
    config = RowsConfig(validation_share=0.1, test_share=0.2)
    metrics, splits = run(one_file, tmp_path / "a", config)
    assert metrics["rows_kept"] == 400
    assert 20 <= len(splits["validation"]) <= 60
    assert 50 <= len(splits["test"]) <= 110
    assert all(row["messages"][0]["role"] == "user" for rows in splits.values() for row in rows)
    rows = (one_file / "mine.jsonl").read_text().splitlines()
    (one_file / "mine.jsonl").write_text("\n".join(reversed(rows)) + "\n")
    again = run(one_file, tmp_path / "b", config)[1]
    assert {json.dumps(row) for row in again["test"]} == {json.dumps(row) for row in splits["test"]}
    other = run(one_file, tmp_path / "c", config, seed=2)[1]
    assert {json.dumps(row) for row in other["test"]} != {json.dumps(row) for row in splits["test"]}


def test_equal_rows_are_kept_once_and_counted(one_file: Path, tmp_path: Path) -> None:
    path = one_file / "mine.jsonl"
    path.write_text(path.read_text() * 2)
    metrics, _ = run(one_file, tmp_path / "out", RowsConfig())
    assert (metrics["rows_in"], metrics["rows_kept"], metrics["dropped"]) == (800, 400, {"repeated": 400})


def test_splits_made_by_hand_stay_and_training_rows_that_leak_into_them_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rows = [{"text": f"t{i}", "label": i % 2} for i in range(20)]
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "validation.jsonl", rows[:3])
    metrics, splits = run(folder, tmp_path / "out", RowsConfig(task="classify"))
    assert splits["validation"] == rows[:3]
    assert splits["train"] == rows[3:]
    assert metrics["dropped"] == {"repeated": 3}


def test_validation_rows_beyond_the_cap_are_trained_on(one_file: Path, tmp_path: Path) -> None:
    _, splits = run(one_file, tmp_path / "out", RowsConfig(validation_share=0.5, most_validation_rows=10))
    assert (len(splits["validation"]), len(splits["train"])) == (10, 390)


def test_rows_that_are_broken_stop_or_are_counted(one_file: Path, tmp_path: Path) -> None:
    with open(one_file / "mine.jsonl", "a") as handle:
        handle.write('{"nothing": 1}\n')
    with pytest.raises(DataError, match="A row has the columns nothing"):
        run(one_file, tmp_path / "a", RowsConfig())
    metrics, _ = run(one_file, tmp_path / "b", RowsConfig(on_broken="drop"))
    assert metrics["dropped"] == {"broken": 1}


def test_a_folder_without_training_rows_says_what_it_holds(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        write_jsonl(folder / name, [{"text": "x"}])
    with pytest.raises(DataError, match=r"holds a\.jsonl, b\.jsonl\. Give one file of rows, or a folder with train"):
        run(folder, tmp_path / "out", RowsConfig())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation_share": 1.0}, r"validation_share is 1\.0\. Use 0 or more, less than 1"),
        ({"validation_share": 0.6, "test_share": 0.5}, "leave nothing to train on"),
        ({"max_rows": -1}, r"max_rows is -1\. Use 0 or more"),
    ],
)
def test_shares_that_leave_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RowsConfig(**changes)


def test_rows_of_one_prompt_stay_together(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rows = [{"prompt": f"q{i % 40}", "chosen": f"a{i}", "rejected": "b"} for i in range(400)]
    write_jsonl(folder / "mine.jsonl", rows)
    _, splits = run(folder, tmp_path / "out", RowsConfig(task="dpo", validation_share=0.2))
    train, validation = ({row["prompt"] for row in splits[name]} for name in ("train", "validation"))
    assert validation
    assert not train & validation


def test_errors_name_the_file_as_it_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "mine.jsonl").write_text("no json\n")
    with pytest.raises(DataError, match=r"^mine\.jsonl, line 1: not JSON"):
        run(folder, tmp_path / "out", RowsConfig())
    (folder / "mine.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match=r"^mine\.jsonl: A row has the columns a\."):
        run(folder, tmp_path / "other", RowsConfig())
