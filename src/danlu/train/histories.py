"""Rows of {user, item, time, rating?} as histories of items, split by leaving out each user's last two.

The last item of a user is what a recommender is tested on, the one before it what is watched in training. That is the
usual protocol of sequential recommendation (Kang & McAuley 2018, section IV); it knows no common date, so what other
users did later is seen in training (Ji et al. 2023). Knows no network.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from danlu.core.errors import DataError, TrainError

FIRST = 1
"""Id of the first item: 0 begins a row."""
UNKNOWN = 0
"""Stands for an item that no training row has."""
_FEWEST = 3
"""A history that is split needs something to learn, to watch and to test."""


@dataclass(frozen=True)
class Case:
    """One question to a recommender."""

    history: tuple[int, ...]
    """Ids of the items before, oldest first."""
    target: int
    """The one that came next; ``UNKNOWN`` can never be found."""


@dataclass(frozen=True)
class Histories:
    """What users did."""

    items: tuple[str, ...]
    """Names of the items of all training rows; the first has id 1."""
    train: tuple[tuple[int, ...], ...]
    """Each user's items to learn from, oldest first."""
    validation: tuple[Case, ...]
    """Each user's last item but one, after all before it."""
    test: tuple[Case, ...]
    """Each user's last item, after all before it."""
    counts: Mapping[str, int]
    """Rows left out by reason, and what there is of each kind."""


@dataclass(frozen=True, kw_only=True)
class HistoryColumns:
    """What the columns are called."""

    user: str = "user"
    """Who."""
    item: str = "item"
    """What."""
    time: str = "time"
    """When, as a number that grows; rows of one time keep their order."""
    rating: str = "rating"
    """How it was liked; looked at only with min_rating."""


@dataclass
class _Reading:
    users: dict[str, list[tuple[float, str]]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter[str])


def read_histories(
    rows: Iterable[Mapping[str, Any]],
    columns: HistoryColumns,
    *,
    min_rating: float | None = None,
) -> Histories:
    """Rows in any order as histories.

    Left out and counted: rows rated lower than ``min_rating`` (``low_rating``), and all but the first of a user's rows
    with one item (``repeated``). Users with fewer than three items are learnt from but not asked (``short_users``).
    An item that only validation or test rows have is unknown to the model (``cold_validation``, ``cold_test``): asked
    for all the same, and never found. Raises DataError for a row without its columns, TrainError when nothing is left.
    """
    reading = _Reading()
    for row in rows:
        _add(reading, row, columns, min_rating)
    ordered = [[item for _, item in _in_order(events, reading.counts)] for events in reading.users.values()]
    splits = [(items, None, None) if len(items) < _FEWEST else (items[:-2], items[-2], items[-1]) for items in ordered]
    learnt = Counter(item for items, _, _ in splits for item in items)
    if not learnt:
        raise TrainError("No row is left to learn from.", "Look at the data, or lower min_rating.")
    names = tuple(sorted(learnt, key=_natural))
    ids = {name: number for number, name in enumerate(names, start=FIRST)}
    train = tuple(tuple(ids[item] for item in items) for items, _, _ in splits)
    validation: list[Case] = []
    test: list[Case] = []
    for before, (_, watched, last) in zip(train, splits, strict=True):
        if watched is not None and last is not None:
            validation.append(Case(before, ids.get(watched, UNKNOWN)))
            after = (*before, ids[watched]) if watched in ids else before
            test.append(Case(after, ids.get(last, UNKNOWN)))
    counts = {
        **{reason: reading.counts[reason] for reason in ("low_rating", "repeated", "same_time")},
        "users": len(ordered),
        "short_users": len(ordered) - len(test),
        "items": len(names),
        "train_events": sum(map(len, train)),
        "cold_validation": sum(case.target == UNKNOWN for case in validation),
        "cold_test": sum(case.target == UNKNOWN for case in test),
    }
    return Histories(names, train, tuple(validation), tuple(test), counts)


def windows(histories: Iterable[Sequence[int]], places: int) -> list[tuple[int, ...]]:
    """Histories in rows of at most ``places`` items, cut from the end: the newest rows are whole."""
    found: list[tuple[int, ...]] = []
    for items in histories:
        for end in range(len(items), 0, -places):
            found.append(tuple(items[max(0, end - places) : end]))
    return found


def _add(reading: _Reading, row: Mapping[str, Any], columns: HistoryColumns, min_rating: float | None) -> None:
    user, item, time = (row.get(name) for name in (columns.user, columns.item, columns.time))
    if user is None or item is None or isinstance(time, bool) or not isinstance(time, int | float):
        raise DataError(
            f"A row has {columns.user} {user!r:.40}, {columns.item} {item!r:.40} and {columns.time} {time!r:.40}.",
            "Each row needs a user, an item and a time as a number; name other columns under columns.",
        )
    if math.isnan(time):
        raise DataError(f"A row of user {user!r:.40} has no time (not a number).", "Give every row a time.")
    if min_rating is not None:
        rating = row.get(columns.rating)
        if isinstance(rating, bool) or not isinstance(rating, int | float):
            raise DataError(
                f"min_rating is {min_rating:g}, but a row has {columns.rating} {rating!r:.40}.", "Leave min_rating out."
            )
        if rating < min_rating:
            reading.counts["low_rating"] += 1
            return
    reading.users[str(user)].append((float(time), str(item)))


def _in_order(events: list[tuple[float, str]], counts: Counter[str]) -> list[tuple[float, str]]:
    """By time, each item once; ``same_time`` counts events whose place among others nobody knows."""
    ordered: list[tuple[float, str]] = []
    seen: set[str] = set()
    for time, item in sorted(events, key=lambda event: event[0]):
        if item in seen:
            counts["repeated"] += 1
            continue
        if ordered and ordered[-1][0] == time:
            counts["same_time"] += 1
        seen.add(item)
        ordered.append((time, item))
    return ordered


def _natural(name: str) -> tuple[bool, int, str]:
    """Numbers by size, before all other names."""
    is_number = name.isascii() and name.isdigit()
    return (not is_number, int(name) if is_number else 0, name)
