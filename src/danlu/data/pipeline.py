"""Runs operators over a table in order: each marks rows, the runner removes them and keeps the reason of every one.

An operator never removes a row itself; it returns the table with the same rows and, for each, a reason or None. So
*rows in = rows kept + rows dropped* holds by construction, and is checked all the same. Operators with scope ``rows``
run as Daft plans, batch by batch (embedded here, the same plan on Ray); those with scope ``table`` see all rows.
Does not know what any operator does, nor the columns beyond ``id``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from danlu.core.config import to_mapping
from danlu.core.events import Events

BATCH_ROWS = 2048


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What an operator says about each row: the row as it is now, and why it should go (None: it stays)."""

    table: pa.Table
    reasons: Sequence[str | None]
    details: Sequence[str | None] = field(default=(), repr=False)
    """What makes the reason checkable, for example the id of the row this one repeats; empty means none has any."""


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One file of data/ops. ``version`` changes whenever its output may change."""

    name: str
    version: int
    scope: Literal["rows", "table"]
    config_type: type[Any]
    apply: Callable[[pa.Table, Any], Applied]


@dataclass(frozen=True, kw_only=True)
class Step:
    """An operator with its configuration."""

    operator: Operator
    config: Any

    def describe(self) -> dict[str, Any]:
        """Name, version and resolved configuration: what a stage key must hash."""
        return {"name": self.operator.name, "version": self.operator.version, "config": to_mapping(self.config)}


@dataclass(frozen=True, kw_only=True)
class Drop:
    """One row that is no longer there, and why."""

    id: str
    stage: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The rows left, the rows dropped in order, and the row count after each step."""

    table: pa.Table
    dropped: list[Drop]
    counts: dict[str, int]


def run(table: pa.Table, steps: Sequence[Step], events: Events) -> Outcome:
    """Apply ``steps`` in order. ``table`` has a text column ``id``, unique."""
    dropped: list[Drop] = []
    counts: dict[str, int] = {}
    for step in steps:
        table, gone = _run_step(table, step, events)
        dropped += gone
        counts[step.operator.name] = table.num_rows
        events.log("data_step", step=step.operator.name, kept=table.num_rows, dropped=len(gone))
    return Outcome(table=table, dropped=dropped, counts=counts)


def apply(table: pa.Table, step: Step) -> tuple[pa.Table, list[Drop]]:
    """One step on one table in this process: rows kept, rows dropped."""
    applied = step.operator.apply(table, step.config)
    return _separate(applied.table, applied.reasons, applied.details, step.operator.name, table.column("id"))


def _run_step(table: pa.Table, step: Step, events: Events) -> tuple[pa.Table, list[Drop]]:
    with events.bar(step.operator.name, total=table.num_rows, unit="rows") as bar:
        if step.operator.scope == "table" or table.num_rows == 0:
            result = apply(table, step)
            bar.advance(table.num_rows)
            return result
        marked: list[pa.Table] = []
        for batch in _map_with_daft(table, step):
            marked.append(batch)
            bar.advance(batch.num_rows)
    whole = pa.concat_tables(marked)
    reasons, details = whole.column(_REASON).to_pylist(), whole.column(_DETAIL).to_pylist()
    rows = whole.drop_columns([_REASON, _DETAIL])
    return _separate(rows, reasons, details, step.operator.name, table.column("id"))


def _separate(
    table: pa.Table, reasons: Sequence[str | None], details: Sequence[str | None], stage: str, ids: pa.ChunkedArray
) -> tuple[pa.Table, list[Drop]]:
    """Split marked rows into kept and dropped, after checking that the operator lost, added or moved none."""
    assert len(reasons) == table.num_rows, f"{stage} marked {len(reasons)} of {table.num_rows} rows"
    assert table.column("id").to_pylist() == ids.to_pylist(), f"{stage} changed the rows' ids or order"
    details = details or [None] * len(reasons)
    marks = zip(ids.to_pylist(), reasons, details, strict=True)
    dropped = [Drop(id=i, stage=stage, reason=r, detail=d or "") for i, r, d in marks if r is not None]
    kept = table.filter(pa.array([reason is None for reason in reasons], pa.bool_()))
    assert kept.num_rows + len(dropped) == table.num_rows
    return kept, dropped


_REASON, _DETAIL = "__reason", "__detail"


def load_daft() -> Any:
    """The data engine, imported on first use and told before that not to report usage to anybody."""
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ["DAFT_ANALYTICS_ENABLED"] = "0"
    os.environ["DAFT_PROGRESS_BAR"] = "0"  # our own bar is drawn instead
    import daft

    return daft


def _map_with_daft(table: pa.Table, step: Step) -> Iterator[pa.Table]:
    """The step as a Daft plan; marked batches in the order of the rows."""
    daft = load_daft()
    probe = _mark(table.slice(0, 0), step)
    result_type = daft.DataType.from_arrow_type(pa.struct(list(probe.schema)))
    function = daft.func.batch(return_dtype=result_type, batch_size=BATCH_ROWS)(
        partial(_mark_series, names=table.column_names, schema=table.schema, step=step)
    )
    columns = [daft.col(name) for name in table.column_names]
    frame = daft.from_arrow(table).select(function(*columns).alias("row"))
    for batch in frame.to_arrow_iter():
        rows = pa.Table.from_struct_array(pa.chunked_array([batch.column(0)]))
        yield rows.cast(probe.schema)


def _mark_series(*columns: Any, names: list[str], schema: pa.Schema, step: Step) -> pa.Array:
    """What Daft calls with one batch of columns: the marked rows as one struct array."""
    table = pa.table([column.to_arrow() for column in columns], names=names).cast(schema)
    return _mark(table, step).to_struct_array().combine_chunks()


def _mark(table: pa.Table, step: Step) -> pa.Table:
    """The table after the step, with reason and detail as two more columns."""
    applied = step.operator.apply(table, step.config)
    nothing = pa.nulls(table.num_rows, pa.string())
    details = pa.array(applied.details, pa.string()) if applied.details else nothing
    return applied.table.append_column(_REASON, pa.array(applied.reasons, pa.string())).append_column(_DETAIL, details)


def set_text(table: pa.Table, name: str, values: Sequence[str | None]) -> pa.Table:
    """``table`` with the text column ``name`` replaced, or added at the end."""
    column = pa.array(values, pa.string())
    index = table.schema.get_field_index(name)
    return table.append_column(name, column) if index < 0 else table.set_column(index, name, column)


def keep_all(table: pa.Table) -> Applied:
    """The table as it is, nothing dropped."""
    return Applied(table=table, reasons=[None] * table.num_rows)


def texts(table: pa.Table, name: str) -> list[str]:
    """A text column as a list, null read as empty."""
    return pc.fill_null(table.column(name), "").to_pylist()
