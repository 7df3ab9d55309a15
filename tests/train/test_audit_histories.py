from typing import Any

from danlu.train.audit_histories import audit_histories
from danlu.train.findings import Finding
from danlu.train.histories import HistoryColumns, read_histories


def findings(*events: tuple[str, str, float]) -> dict[str, Finding]:
    rows: list[dict[str, Any]] = [{"user": user, "item": item, "time": time} for user, item, time in events]
    return {f.code: f for f in audit_histories(read_histories(rows, HistoryColumns()))}


def history(user: str, items: str, time: float | None = None) -> list[tuple[str, str, float]]:
    return [(user, item, place if time is None else time) for place, item in enumerate(items)]


def test_good_histories_have_no_finding() -> None:
    assert findings(*history("ada", "abcd"), *history("bob", "bcda"), *history("eve", "cdab")) == {}


def test_one_item_refuses() -> None:
    assert findings(*history("ada", "a"), *history("bob", "a"))["one_item"].refuses


def test_histories_in_which_nothing_follows_refuse() -> None:
    found = findings(*history("ada", "abc"), *history("bob", "bca"))
    assert found["nothing_follows"].message == (
        "No user has two items to learn from: there is nothing that follows another."
    )
    assert found["nothing_follows"].refuses


def test_rows_of_one_time_refuse_when_nearly_all_are() -> None:
    at_once = history("ada", "abcdefghijkl", 1.0)
    assert findings(*at_once)["no_order"].refuses
    some = findings(*history("ada", "abcdef"), *history("bob", "abcdef", 1.0))["no_order"]
    assert not some.refuses


def test_short_users_repeated_rows_and_unknown_items_warn() -> None:
    ada = history("ada", "abcd") * 3
    found = findings(*ada, *history("bob", "ab"), *history("eve", "bcxy"))
    assert {code: f.refuses for code, f in found.items()} == {
        "short_users": False,
        "repeated": False,
        "cold_items": False,
    }
