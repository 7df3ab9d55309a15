"""Rows as histories, by a small example worked out by hand."""

from typing import Any

import pytest

from danlu.core.errors import DataError, TrainError
from danlu.train.histories import UNKNOWN, Case, HistoryColumns, read_histories, windows


def row(user: Any, item: Any, time: Any, rating: Any = 5) -> dict[str, Any]:
    return {"user": user, "item": item, "time": time, "rating": rating}


ROWS = [
    row("a", 30, 4), row("a", 2, 1), row("a", 10, 2), row("a", 7, 3),  # 2, 10 | 7 | 30
    row("b", 10, 1), row("b", 2, 5), row("b", 10, 6), row("b", 7, 6), row("b", 2, 7),  # 10 | 2 | 7, and two repeats
    row("c", 2, 1), row("c", 10, 1),  # too short to ask
]  # fmt: skip


def test_the_last_item_is_for_testing_and_the_one_before_for_watching() -> None:
    found = read_histories(ROWS, HistoryColumns())
    assert found.items == ("2", "10")  # by number, of training rows only
    assert found.train == ((1, 2), (2,), (1, 2))
    assert found.validation == (Case((1, 2), UNKNOWN), Case((2,), 1))
    assert found.test == (Case((1, 2), UNKNOWN), Case((2, 1), UNKNOWN))


def test_what_is_left_out_or_cold_is_counted() -> None:
    counts = read_histories(ROWS, HistoryColumns()).counts
    assert counts == {
        "low_rating": 0, "repeated": 2, "same_time": 1, "users": 3, "short_users": 1, "items": 2, "train_events": 5,
        "cold_validation": 1, "cold_test": 2,
    }  # fmt: skip
    low = read_histories([*ROWS, row("c", 99, 9, rating=1)], HistoryColumns(), min_rating=3)
    assert low.counts == {**counts, "low_rating": 1}


def test_rows_of_one_time_keep_their_order() -> None:
    rows = [row("a", item, 0) for item in (5, 3, 4, 1)]
    found = read_histories(rows, HistoryColumns())
    assert [found.items[i - 1] for i in found.train[0]] == ["5", "3"]
    assert found.counts["same_time"] == 3


def test_columns_may_have_other_names() -> None:
    rows = [{"who": 1, "what": "x", "when": time} for time in range(1)]
    assert read_histories(rows, HistoryColumns(user="who", item="what", time="when")).train == ((1,),)


def test_windows_are_cut_from_the_end() -> None:
    assert windows([(1, 2, 3, 4, 5), (6,), ()], 2) == [(4, 5), (2, 3), (1,), (6,)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(None, 1, 2), r"A row has user None, item 1 and time 2\. Each row needs a user"),
        (row("a", 1, "yesterday"), r"time 'yesterday'\. .*name other columns under columns"),
        (row("a", 1, float("nan")), r"A row of user 'a' has no time"),
    ],
)
def test_a_row_that_says_too_little_is_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_histories([bad], HistoryColumns())


def test_ratings_that_are_asked_for_must_be_there() -> None:
    with pytest.raises(DataError, match=r"min_rating is 3, but a row has rating None\. Leave min_rating out"):
        read_histories([row("a", 1, 1, rating=None)], HistoryColumns(), min_rating=3)
    with pytest.raises(TrainError, match="No row is left to learn from"):
        read_histories([row("a", 1, 1, rating=1)], HistoryColumns(), min_rating=3)
