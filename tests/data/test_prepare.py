"""The whole way from a file of rows to pairs, on a small shop made for the purpose."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from danlu.core.config import from_mapping
from danlu.core.errors import ConfigError, DataError
from danlu.core.events import Events
from danlu.core.files import read_json, read_jsonl
from danlu.data.prepare import PrepareConfig, prepare
from danlu.text import lexicon

MAIL = "Mail me at a@b.com."
COLOURS = ("navy", "black", "white", "green", "red", "pink")
MATERIALS = ("cotton", "silk", "linen", "wool", "denim", "velvet", "lace", "suede")
OURS = {
    "columns": {"text": "review", "title": "headline", "category": "kind", "product": "sku", "rating": "stars"},
    "split": {"test_products": 4, "validation_products": 1},
}


def _shop(path: Path, *, extra: list[dict[str, Any]] | None = None) -> Path:
    rows: list[dict[str, Any]] = [
        {
            "review": f"I love it! The {colour} {material} is soft and lined, and the loose fit has pockets. {MAIL}",
            "headline": f"{colour} {material}",
            "kind": "Dresses",
            "sku": f"sku-{i}",
            "stars": 5,
        }
        for i, material in enumerate(MATERIALS)
        for colour in COLOURS
    ]
    rows += extra or []
    if path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _config(**more: Any) -> PrepareConfig:
    return from_mapping(PrepareConfig, {**OURS, **more}, "data")


EXTRA = [
    {"review": "", "headline": "x", "kind": "", "sku": "", "stars": 5},
    {"review": "The lace is itchy and I sent it back.", "headline": "bad", "kind": "Tops", "sku": "s", "stars": 1},
    {"review": "I LOVE it! the navy cotton is soft and lined, and the loose fit has pockets. Mail me at a@b.com.",
     "headline": "again", "kind": "Tops", "sku": "s", "stars": 4},
]  # fmt: skip


@pytest.mark.parametrize("name", ["shop.csv", "shop.jsonl"])
def test_a_users_own_file_becomes_pairs(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    metrics = prepare(_shop(tmp_path / name, extra=EXTRA), _config(), out, Events(), 0)
    assert metrics["rows_in"] == 51
    assert metrics["rows_in"] == metrics["rows_kept"] + sum(metrics["dropped"].values())
    assert metrics["dropped"] == {
        "one_per_test_product": 20,
        "product_cap": 3,
        "duplicate": 1,
        "empty": 1,
        "low_rating": 1,
    }
    assert metrics["pairs"] == {"train": 18, "validation": 3, "test": 4}
    assert metrics["masked"] == {"EMAIL": 25 + 20 + 3}
    assert {path.name for path in out.iterdir()} == {
        *("train.jsonl", "validation.jsonl", "test.jsonl", "dropped.parquet", "card.json", "card.md")
    }


def test_every_pair_states_exactly_the_attributes_it_was_given(tmp_path: Path) -> None:
    prepare(_shop(tmp_path / "shop.jsonl"), _config(), tmp_path / "out", Events(), 0)
    for split in ("train", "validation", "test"):
        for row in read_jsonl(tmp_path / "out" / f"{split}.jsonl"):
            assert list(row) == ["id", "product_id", "messages", "attributes", "title", "class"]
            user, assistant = row["messages"]
            assert (user["role"], assistant["role"]) == ("user", "assistant")
            assert lexicon.find(assistant["content"]) == row["attributes"]
            assert all(value in user["content"] for values in row["attributes"].values() for value in values)


def test_the_same_input_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    source = _shop(tmp_path / "shop.jsonl", extra=EXTRA)
    for name in ("a", "b"):
        prepare(source, _config(), tmp_path / name, Events(), 0)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_every_dropped_row_is_listed_with_its_reason(tmp_path: Path) -> None:
    metrics = prepare(_shop(tmp_path / "shop.jsonl", extra=EXTRA), _config(), tmp_path / "out", Events(), 0)
    rows = pq.read_table(tmp_path / "out/dropped.parquet").to_pylist()
    assert len(rows) == sum(metrics["dropped"].values())
    assert {"id": "row-48", "stage": "quality", "reason": "empty", "detail": ""} in rows
    assert {"id": "row-50", "stage": "exact_dedup", "reason": "duplicate", "detail": "row-00"} in rows


def test_the_card_tells_source_steps_drops_and_samples(tmp_path: Path) -> None:
    prepare(_shop(tmp_path / "shop.jsonl", extra=EXTRA), _config(), tmp_path / "out", Events(), 0)
    card = read_json(tmp_path / "out/card.json")
    assert card["source"]["rows"] == 51
    assert [step["name"] for step in card["steps"]] == list(PrepareConfig().operators)
    assert card["products"] == {"train": 3, "validation": 1, "test": 4}
    assert card["attributes"]["fit"] == {"loose": 25, "with pockets": 25}
    assert "Mail me at a@b.com" not in json.dumps(card)
    text = (tmp_path / "out/card.md").read_text(encoding="utf-8")
    assert "| quality | empty | 1 |" in text
    assert "| EMAIL | 48 |" in text
    assert "states no licence" in text


def test_broken_rows_are_dropped_with_their_line_when_asked(tmp_path: Path) -> None:
    source = _shop(tmp_path / "shop.jsonl")
    source.write_text(source.read_text(encoding="utf-8") + "{broken\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 49: not JSON"):
        prepare(source, _config(), tmp_path / "out", Events(), 0)
    metrics = prepare(source, _config(on_broken="drop"), tmp_path / "out", Events(), 0)
    assert metrics["dropped"]["broken_row"] == 1
    assert metrics["rows_in"] == 49


def test_without_product_title_and_rating_each_row_is_a_product(tmp_path: Path) -> None:
    columns = {"text": "review", "title": None, "category": None, "product": None, "rating": None}
    config = _config(columns=columns, options={"product_copy": {"require_title": False}})
    metrics = prepare(_shop(tmp_path / "shop.csv"), config, tmp_path / "out", Events(), 0)
    assert metrics["products"] == {"train": 43, "validation": 1, "test": 4}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"operators": ["normalise"]}, "no data.ops plugin 'normalise'.*Did you mean 'normalize'"),
        ({"options": {"qualty": {}}}, "Options are given for 'qualty', which does not run.*Did you mean 'quality'"),
        ({"options": {"quality": {"min_word": 3}}}, r"Unknown key 'options\.quality\.min_word'.*'min_words'"),
        ({"operators": ["quality", "quality"]}, "An operator stands twice in quality, quality"),
        ({"colums": {}}, r"Unknown key 'data\.colums'.*'columns'"),
    ],
)
def test_a_wrong_configuration_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(PrepareConfig, values, "data")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": "reviews"}, r"There is no column 'reviews'\. Did you mean 'review'"),
        ({"text": "review", "rating": "headline"}, "The column 'headline' does not hold numbers"),
        ({"text": "tags"}, "The column 'tags' holds list.*not text"),
    ],
)
def test_a_column_that_does_not_fit_is_named(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    source = _shop(tmp_path / "shop.jsonl", extra=[{"review": "ok", "tags": ["a"]}])
    names = {"title": None, "category": None, "product": None, "rating": None, **columns}
    with pytest.raises(DataError, match=message):
        prepare(source, _config(columns=names), tmp_path / "out", Events(), 0)


def test_rows_that_all_fall_out_say_why(tmp_path: Path) -> None:
    config = _config(options={"product_copy": {"min_rating": 6.0}})
    with pytest.raises(DataError, match="No pair is left of 48 rows; most were dropped as low_rating"):
        prepare(_shop(tmp_path / "shop.jsonl"), config, tmp_path / "out", Events(), 0)


def test_operators_without_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"None of normalize makes pairs\. Put product_copy last"):
        prepare(_shop(tmp_path / "shop.jsonl"), _config(operators=["normalize"]), tmp_path / "out", Events(), 0)
