"""From raw rows to training data: read, run the operators, split by product, write pairs, drops and the data card.

Works on any Parquet, JSONL or CSV file whose columns are named in ``Columns``. The same input, configuration and seed
give the same bytes. Does not know where the file came from, nor what is trained on the pairs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from danlu.core import plugins
from danlu.core.config import from_mapping
from danlu.core.errors import ConfigError, DataError, nearest
from danlu.core.events import Events
from danlu.core.files import atomic_write, sha256_file, write_jsonl
from danlu.data import card, pipeline
from danlu.data.pipeline import Drop, Step
from danlu.data.sources.files import OnBroken, read_rows, require_columns
from danlu.data.split import SplitConfig, split
from danlu.text.pii import mask

NUM_SAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column of the source holds what; null where there is none."""

    text: str = "Review Text"
    """The text that operators clean and copy is taken from."""
    title: str | None = "Title"
    """A short title of the row."""
    category: str | None = "Class Name"
    """The product's class, given in the prompt."""
    product: str | None = "Clothing ID"
    """What the row is about; rows of one product stay in one split. Null: each row is a product."""
    rating: str | None = "Rating"
    """A number; low ones are left out of copy."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Everything that decides what the training data looks like."""

    columns: Columns = field(default_factory=Columns)
    """The source's column names."""
    on_broken: OnBroken = "error"
    """A row that cannot be read stops the run (error), or is left out with the reason broken_row (drop)."""
    operators: tuple[str, ...] = (
        "normalize",
        "quality",
        "exact_dedup",
        "near_dedup",
        "mask_pii",
        "label_attributes",
        "product_copy",
    )
    """Operators in order; the last must make pairs."""
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options by operator, for example {quality: {min_words: 5}}."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """How pairs are divided."""

    def __post_init__(self) -> None:
        self.steps()

    def steps(self) -> list[Step]:
        """The operators with their resolved configurations; ConfigError for a wrong name or option."""
        for name in self.options:
            if name not in self.operators:
                raise ConfigError(f"Options are given for '{name}', which does not run.", nearest(name, self.operators))
        if len(set(self.operators)) < len(self.operators):
            raise ConfigError(f"An operator stands twice in {', '.join(self.operators)}.", "Keep one of them.")
        steps: list[Step] = []
        for name in self.operators:
            operator = plugins.load("data.ops", name)
            config = from_mapping(operator.config_type, self.options.get(name, {}), f"options.{name}")
            steps.append(Step(operator=operator, config=config))
        return steps

    def describe_steps(self) -> list[dict[str, Any]]:
        """Operators with version and resolved configuration: what a stage key must hash beside this configuration."""
        return [step.describe() for step in self.steps()]


def prepare(source: Path, config: PrepareConfig, out: Path, events: Events, seed: int) -> dict[str, Any]:
    """Write train, validation and test.jsonl, dropped.parquet, card.json and card.md into ``out``; returns metrics."""
    rows = read_rows(source, config.on_broken)
    raw = _rename(rows.table, config.columns)
    broken = [Drop(id=f"line-{n}", stage="read", reason="broken_row", detail=mask(why).text) for n, why in rows.broken]
    outcome = pipeline.run(raw, config.steps(), events)
    if outcome.table.num_rows == 0:
        raise DataError(
            f"No pair is left of {raw.num_rows} rows; most were dropped as {_most(outcome.dropped)}.",
            "Check the columns, or loosen that operator's options.",
        )
    if "copy" not in outcome.table.column_names:
        raise ConfigError(f"None of {', '.join(config.operators)} makes pairs.", "Put product_copy last.")
    parts, left_out = split(outcome.table, config.split, seed, events)
    splits = {name: [_pair(row) for row in part] for name, part in parts.items()}
    dropped = [*broken, *outcome.dropped, *left_out]
    rows_in = raw.num_rows + len(broken)
    rows_kept = sum(map(len, splits.values()))
    assert rows_in == rows_kept + len(dropped), "rows were lost without a reason"
    for name, part in splits.items():
        write_jsonl(out / f"{name}.jsonl", part)
    _write_dropped(out / "dropped.parquet", dropped)
    described = card.describe(
        source={"name": source.name, "sha256": sha256_file(source), "rows": rows_in},
        steps=config.describe_steps(),
        counts=outcome.counts,
        dropped=dropped,
        masked=outcome.table.column("masked").to_pylist() if "masked" in outcome.table.column_names else [],
        splits=splits,
        samples=_samples(raw, splits["train"]),
        seed=seed,
    )
    card.write(out, described)
    return {key: described[key] for key in ("rows_in", "rows_kept", "dropped", "pairs", "products", "masked")}


def _rename(table: pa.Table, columns: Columns) -> pa.Table:
    """The source's columns under the names that operators know, with an id per row."""
    wanted = {"title": columns.title, "class": columns.category, "product_id": columns.product}
    named = [columns.text, *wanted.values(), columns.rating]
    require_columns(table, [name for name in named if name is not None])
    digits = len(str(table.num_rows))
    ids = [f"row-{i:0{digits}d}" for i in range(table.num_rows)]
    made: dict[str, Any] = {"id": pa.array(ids, pa.string()), "text": _as_text(table, columns.text)}
    made |= {name: _as_text(table, source) for name, source in wanted.items() if source is not None}
    if columns.rating is not None:
        made["rating"] = _as_number(table, columns.rating)
    products = made["product_id"].to_pylist() if "product_id" in made else [""] * table.num_rows
    products = [(product or "").strip() or row_id for product, row_id in zip(products, ids, strict=True)]
    made["product_id"] = pa.array(products, pa.string())
    return pa.table(made)


def _as_text(table: pa.Table, name: str) -> pa.ChunkedArray:
    try:
        return table.column(name).cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"The column '{name}' holds {table.column(name).type}, not text.", "Name another column under 'columns'."
        ) from error


def _as_number(table: pa.Table, name: str) -> pa.ChunkedArray:
    column = table.column(name)
    try:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            stripped = [(value or "").strip() or None for value in column.to_pylist()]
            column = pa.chunked_array([pa.array(stripped, pa.string())])
        return column.cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"The column '{name}' does not hold numbers: {str(error).splitlines()[0]}.",
            "Mend the value, or set columns.rating to null.",
        ) from error


def _pair(row: Mapping[str, Any]) -> dict[str, Any]:
    """One line of a split."""
    return {
        "id": row["id"],
        "product_id": row["product_id"],
        "messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["copy"]}],
        "attributes": json.loads(row["attributes"]),
        "title": row.get("title") or "",
        "class": row.get("class") or "",
    }


def _most(dropped: Sequence[Drop]) -> str:
    return next(iter(card.reasons(dropped)), "nothing")


def _samples(raw: pa.Table, pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The first pairs of training (they are shuffled), with the raw text that they were made from, masked."""
    before = dict(zip(raw.column("id").to_pylist(), raw.column("text").to_pylist(), strict=True))
    names = ("Before", "Prompt", "Copy")
    return [
        dict(zip(names, (mask(before[p["id"]]).text, *(m["content"] for m in p["messages"])), strict=True))
        for p in pairs[:NUM_SAMPLES]
    ]


def _write_dropped(path: Path, dropped: Sequence[Drop]) -> None:
    names = ("id", "stage", "reason", "detail")
    columns = [pa.array([getattr(drop, name) for drop in dropped], pa.string()) for name in names]
    with atomic_write(path, "wb") as handle:
        pq.write_table(pa.table(columns, names=list(names)), handle)
