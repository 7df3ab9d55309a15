"""The runner, with operators made for the purpose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from danlu.core.events import Events
from danlu.core.files import read_jsonl
from danlu.data import pipeline
from danlu.data.pipeline import Applied, Drop, Operator, Step, keep_all, set_text, texts


@dataclass(frozen=True, kw_only=True)
class Config:
    letter: str = "b"


def _drop_letter(table: pa.Table, config: Config) -> Applied:
    hits = [config.letter in text for text in texts(table, "text")]
    upper = set_text(table, "text", [text.upper() for text in texts(table, "text")])
    reasons = ["has_letter" if hit else None for hit in hits]
    return Applied(table=upper, reasons=reasons, details=[config.letter if hit else None for hit in hits])


def _step(scope: str = "rows", apply: object = _drop_letter, **config: str) -> Step:
    operator = Operator(name="drop_letter", version=3, scope=scope, config_type=Config, apply=apply)  # type: ignore[arg-type]
    return Step(operator=operator, config=Config(**config))


def _table(num_rows: int) -> pa.Table:
    return pa.table({"id": [f"r{i}" for i in range(num_rows)], "text": ["abc"[i % 3] * 2 for i in range(num_rows)]})


@pytest.mark.parametrize("scope", ["rows", "table"])
def test_dropped_rows_carry_reason_stage_and_detail(scope: str) -> None:
    outcome = pipeline.run(_table(4), [_step(scope)], Events())
    assert outcome.table.to_pylist() == [
        {"id": "r0", "text": "AA"},
        {"id": "r2", "text": "CC"},
        {"id": "r3", "text": "AA"},
    ]
    assert outcome.dropped == [Drop(id="r1", stage="drop_letter", reason="has_letter", detail="b")]
    assert outcome.counts == {"drop_letter": 3}


def test_many_batches_keep_their_order() -> None:
    num_rows = 3 * pipeline.BATCH_ROWS + 5
    outcome = pipeline.run(_table(num_rows), [_step()], Events())
    assert outcome.table["id"].to_pylist() == [f"r{i}" for i in range(num_rows) if i % 3 != 1]


def test_steps_follow_each_other_and_stay_on_an_empty_table() -> None:
    steps = [_step(letter="a"), _step(letter="B"), _step(letter="C"), _step()]
    outcome = pipeline.run(_table(9), steps, Events())
    assert outcome.table.num_rows == 0
    assert len(outcome.dropped) == 9


def test_progress_counts_rows(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl")
    pipeline.run(_table(5), [_step()], events)
    bar, step = read_jsonl(tmp_path / "events.jsonl")
    assert (bar["done"], bar["total"], bar["unit"]) == (5, 5, "rows")
    assert (step["kept"], step["dropped"]) == (3, 2)


def test_an_operator_that_loses_rows_is_caught() -> None:
    with pytest.raises(AssertionError):
        pipeline.apply(_table(3), _step(apply=lambda table, config: keep_all(table.slice(0, 2))))


def test_an_operator_that_moves_rows_is_caught() -> None:
    with pytest.raises(AssertionError, match="changed the rows' ids or order"):
        pipeline.apply(_table(3), _step(apply=lambda table, config: keep_all(table.take([1, 0, 2]))))


def test_a_step_describes_what_a_key_must_hash() -> None:
    assert _step(letter="x").describe() == {"name": "drop_letter", "version": 3, "config": {"letter": "x"}}
