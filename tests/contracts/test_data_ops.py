"""What every operator in data/ops promises, whoever wrote it."""

from __future__ import annotations

import pyarrow as pa
import pytest

from danlu.core import plugins
from danlu.core.config import from_mapping, to_mapping
from danlu.core.events import Events
from danlu.data import pipeline
from danlu.data.pipeline import Operator, Step

TEXTS = [
    "I love it. The navy lace dress is soft, fits true to size and the loose fit is perfect for a summer party.",
    "i love it. the navy lace dress is soft, fits true to size and the loose fit is perfect for a summer party.",
    "面料是纯棉的，柔软透气，版型宽松，适合夏天通勤。联系a@b.com",
    "ok",
    None,
    "",
    "AAAAAAAAAAAAAAAAAAAAAAAA BBBBBBBBBBBBB CCCCCCCCCC DDDDDDD",
    "1234 5678 ...... !!!!!! 99",
]


def _table(num_rows: int) -> pa.Table:
    rows = [
        {
            "id": f"r{i}",
            "text": text,
            "title": None if i % 3 == 2 else f"Title {i}",
            "class": "Dresses" if i % 2 else None,
            "rating": None if i == 3 else float(i % 6),
            "product_id": str(i // 2),
        }
        for i, text in enumerate(TEXTS[:num_rows])
    ]
    names = {
        "id": "string",
        "text": "string",
        "title": "string",
        "class": "string",
        "rating": "float64",
        "product_id": "string",
    }
    return pa.Table.from_pylist(rows, schema=pa.schema(list(names.items())))


@pytest.fixture(params=plugins.names("data.ops"))
def step(request: pytest.FixtureRequest) -> Step:
    operator = plugins.load("data.ops", request.param)
    return Step(operator=operator, config=operator.config_type())


def test_the_plugin_is_an_operator_named_like_its_file(step: Step) -> None:
    assert isinstance(step.operator, Operator)
    assert step.operator.name in plugins.names("data.ops")
    assert step.operator.version >= 1


def test_the_configuration_survives_a_recipe(step: Step) -> None:
    assert from_mapping(step.operator.config_type, to_mapping(step.config), "x") == step.config


def test_every_row_is_kept_or_dropped_with_a_reason(step: Step) -> None:
    table = _table(len(TEXTS))
    kept, dropped = pipeline.apply(table, step)
    assert kept.num_rows + len(dropped) == table.num_rows
    assert set(kept["id"].to_pylist()) | {drop.id for drop in dropped} == set(table["id"].to_pylist())
    assert all(drop.reason and drop.stage == step.operator.name for drop in dropped)


def test_the_same_rows_give_the_same_result(step: Step) -> None:
    first, again = (pipeline.apply(_table(len(TEXTS)), step) for _ in range(2))
    assert first[0].equals(again[0])
    assert first[1] == again[1]


def test_the_data_engine_gives_what_a_plain_call_gives(step: Step) -> None:
    direct = pipeline.apply(_table(len(TEXTS)), step)
    outcome = pipeline.run(_table(len(TEXTS)), [step], Events())
    assert outcome.table.to_pylist() == direct[0].to_pylist()
    assert outcome.dropped == direct[1]


def test_an_empty_table_stays_empty_with_the_same_columns(step: Step) -> None:
    empty = pipeline.run(_table(0), [step], Events()).table
    assert empty.num_rows == 0
    assert empty.schema.equals(pipeline.run(_table(3), [step], Events()).table.schema)
