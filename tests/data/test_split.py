"""Splitting by product."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from danlu.core.errors import ConfigError, DataError
from danlu.core.events import Events, Silent
from danlu.data.split import SplitConfig, split

CONFIG = SplitConfig(test_products=10, validation_products=5, pairs_per_product=4, pairs_per_validation_product=2)


def _rows(num_products: int, each: int = 6) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {
            "id": f"r{product:03d}-{i}",
            "product_id": str(product),
            "copy": "word " * (10 + i),
            "attributes": json.dumps({"material": ["soft", "warm"][: 1 + i % 2]}),
        }
        for product in range(num_products)
        for i in range(each)
    ]
    return pa.Table.from_pylist(rows)


def test_no_product_stands_in_two_splits_and_every_row_is_accounted_for() -> None:
    table = _rows(40)
    parts, dropped = split(table, CONFIG, 0, Events())
    products = {name: {row["product_id"] for row in rows} for name, rows in parts.items()}
    assert {name: len(ids) for name, ids in products.items()} == {"train": 25, "validation": 5, "test": 10}
    assert len(set().union(*products.values())) == 40
    assert sum(map(len, parts.values())) + len(dropped) == table.num_rows
    assert {drop.reason for drop in dropped} == {"one_per_test_product", "product_cap"}


def test_a_test_product_gives_the_pair_with_most_attributes_then_most_words() -> None:
    parts, _ = split(_rows(40), CONFIG, 0, Events())
    assert all(row["id"].endswith("-5") for row in parts["test"])


def test_caps_hold_for_every_product() -> None:
    parts, _ = split(_rows(40), CONFIG, 0, Events())
    assert (len(parts["train"]), len(parts["validation"])) == (25 * 4, 5 * 2)


def test_the_same_seed_splits_alike_whatever_the_order_of_rows_and_another_seed_does_not() -> None:
    table = _rows(40)
    turned = table.take(list(range(table.num_rows))[::-1])
    assert split(table, CONFIG, 0, Events())[0] == split(turned, CONFIG, 0, Events())[0]
    assert split(table, CONFIG, 1, Events())[0] != split(table, CONFIG, 0, Events())[0]


def test_training_rows_are_shuffled() -> None:
    ids = [row["id"] for row in split(_rows(40), CONFIG, 0, Events())[0]["train"]]
    assert ids != sorted(ids)


def test_few_products_shrink_what_is_held_out_and_say_so() -> None:
    said: list[str] = []

    class Listening(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    parts, _ = split(_rows(10), CONFIG, 0, Events(display=Listening()))
    assert {name: len({row["product_id"] for row in rows}) for name, rows in parts.items()} == {
        "train": 3,
        "validation": 3,
        "test": 4,
    }
    assert said == [
        "Only 10 products have a usable pair: 4 instead of 10 are held out for test, 3 instead of 5 for validation."
    ]


def test_one_product_cannot_be_split() -> None:
    with pytest.raises(DataError, match="Only 1 product has a usable pair, and at least 2 are needed"):
        split(_rows(1), CONFIG, 0, Events())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"test_products": -1}, "test_products is -1, validation_products 40"),
        ({"pairs_per_product": 0}, "A cap of pairs per product is below 1"),
        ({"most_held_out": 1.0}, r"most_held_out is 1\.0"),
    ],
)
def test_impossible_sizes_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SplitConfig(**values)
