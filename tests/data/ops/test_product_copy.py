from __future__ import annotations

import json

import pyarrow as pa
import pytest

from danlu.core.errors import ConfigError
from danlu.data.ops.product_copy import ProductCopyConfig, apply, choose_copy
from danlu.text import lexicon

REVIEW = "I bought this on sale. the navy lace is soft and the fit is loose. perfect for a summer party! my size is 6."


def _row(**values: object) -> pa.Table:
    row = {"id": "r", "text": REVIEW, "title": "Lovely", "class": "Dresses", "rating": 5.0, **values}
    schema = pa.schema(
        [("id", "string"), ("text", "string"), ("title", "string"), ("class", "string"), ("rating", "float64")]
    )
    return pa.Table.from_pylist([row], schema=schema)


def test_a_review_becomes_a_prompt_and_the_copy_it_asks_for() -> None:
    row = apply(_row(), ProductCopyConfig(min_words=5)).table.to_pylist()[0]
    assert row["copy"] == "The navy lace is soft and the fit is loose."
    assert row["prompt"] == (
        "Write product copy.\nTitle: Lovely\nClass: Dresses\nMaterial: lace, soft\nFit: loose\nColour: navy"
    )
    assert json.loads(row["attributes"]) == lexicon.find(row["copy"])


def test_chinese_copy_is_asked_for_in_chinese() -> None:
    text = "快递很快。面料是纯棉的，柔软透气，版型宽松，适合夏天通勤。"
    row = apply(_row(text=text, title="好看", **{"class": "连衣裙"}), ProductCopyConfig()).table.to_pylist()[0]
    assert row["copy"] == "面料是纯棉的，柔软透气，版型宽松，适合夏天通勤。"
    assert row["prompt"].startswith("写商品文案。\n标题：好看\n类别：连衣裙\n材质：cotton、soft、breathable")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"rating": 3.0}, "low_rating"),
        ({"title": None}, "no_title"),
        ({"text": "I love it. My favorite."}, "no_product_sentences"),
        ({"text": "The dress is very pretty and the style is classic in every way, really."}, "too_few_attributes"),
        ({"text": "The lace is navy and soft."}, "copy_too_short"),
        ({"text": None}, "no_product_sentences"),
    ],
)
def test_a_row_without_a_pair_says_why(values: dict[str, object], reason: str) -> None:
    assert list(apply(_row(**values), ProductCopyConfig()).reasons) == [reason]


def test_a_row_without_rating_passes_and_a_title_may_be_optional() -> None:
    config = ProductCopyConfig(min_words=5, require_title=False)
    applied = apply(_row(rating=None, title=None), config)
    assert list(applied.reasons) == [None]
    assert "Title" not in applied.table["prompt"][0].as_py()


def test_long_copy_keeps_the_sentences_with_most_attributes_in_their_order() -> None:
    plain = "The style of this piece is a classic that will go with a lot of other pieces for long."
    text = f"{plain} The soft navy lace top is loose and flowy. {plain[:-1]} on. A warm grey wool coat with pockets."
    copy, reason = choose_copy(text, ProductCopyConfig(max_words=20))
    assert reason == ""
    assert copy == "The soft navy lace top is loose and flowy. A warm grey wool coat with pockets."


def test_lengths_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="min_words is 9, max_words 3"):
        ProductCopyConfig(min_words=9, max_words=3)
