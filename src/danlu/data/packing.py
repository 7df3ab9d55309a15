"""Packing: which rows share a batch or a sequence, so that every one is nearly full and little is padding.

Rows laid end to end are packed (``pack``, ``pack_documents``); rows that must be padded are put beside rows of like
length (``bucket``). Knows lengths only; what a row holds is not its business.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """A run of one document's tokens."""

    document: int
    """Index into the lengths."""
    start: int
    """First token, counted inside the document."""
    stop: int
    """One past the last token."""


def pack(lengths: Sequence[int], budget: int, *, seed: int, window: int = 256) -> list[list[int]]:
    """Row indices of each batch; the rows of a batch have at most ``budget`` tokens together.

    Rows are shuffled, then packed best-fit-decreasing inside windows of ``window`` rows: batches stay random while
    only the last one of a window can be far from full. Batches are shuffled within their window. Rows longer than
    ``budget`` are the caller's bug.
    """
    assert all(0 < length <= budget for length in lengths), "rows must fit the budget"
    random_ = random.Random(seed)
    order = list(range(len(lengths)))
    random_.shuffle(order)
    batches: list[list[int]] = []
    carried: list[int] = []  # the emptiest batch of a window goes on in the next
    for start in range(0, len(order), window):
        rows = carried + order[start : start + window]
        packed = _best_fit(sorted(rows, key=lambda row: (-lengths[row], row)), lengths, budget)
        packed.sort(key=lambda batch: -sum(lengths[row] for row in batch))
        carried = packed.pop() if start + window < len(order) else []
        random_.shuffle(packed)
        batches += packed
    return batches


def pack_documents(lengths: Sequence[int], sequence_length: int, *, seed: int, window: int = 256) -> list[list[Piece]]:
    """The pieces of documents that make up each sequence of at most ``sequence_length`` tokens.

    A document that fits stays whole; a longer one is cut into full sequences and a rest. Empty documents are left out.
    """
    pieces = [
        Piece(document, start, min(start + sequence_length, length))
        for document, length in enumerate(lengths)
        for start in range(0, length, sequence_length)
    ]
    rows = pack([piece.stop - piece.start for piece in pieces], sequence_length, seed=seed, window=window)
    return [[pieces[row] for row in sequence] for sequence in rows]


def bucket(
    lengths: Sequence[int], budget: int, *, seed: int, multiple_of: int = 1, window: int = 4096
) -> list[list[int]]:
    """Row indices of batches to be padded: rows of like length, padded to at most ``budget`` tokens together.

    Rows are shuffled, sorted by length inside windows of ``window`` rows, and cut where the padded batch (its rows
    times its longest, rounded up to ``multiple_of``, so that few shapes occur) would be over the budget. Batches are
    shuffled within their window. A row that is over the budget by itself stands alone.
    """
    assert budget > 0
    assert multiple_of > 0
    random_ = random.Random(seed)
    order = list(range(len(lengths)))
    random_.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), window):
        found: list[list[int]] = []
        for row in sorted(order[start : start + window], key=lambda row: (-lengths[row], row)):
            # the first row of a batch is its longest
            if found and (len(found[-1]) + 1) * _padded(lengths[found[-1][0]], multiple_of) <= budget:
                found[-1].append(row)
            else:
                found.append([row])
        random_.shuffle(found)
        batches += found
    return batches


def fill_rate(batches: Sequence[Sequence[int]], lengths: Sequence[int], budget: int) -> float:
    """Share of the batches' room that holds tokens."""
    return sum(lengths[row] for batch in batches for row in batch) / (len(batches) * budget) if batches else 0.0


def padded_fill_rate(batches: Sequence[Sequence[int]], lengths: Sequence[int], multiple_of: int = 1) -> float:
    """Share of padded batches that holds tokens."""
    room = sum(len(batch) * _padded(max(lengths[row] for row in batch), multiple_of) for batch in batches)
    return sum(lengths[row] for batch in batches for row in batch) / room if room else 0.0


def _padded(length: int, multiple_of: int) -> int:
    return -(-length // multiple_of) * multiple_of


def _best_fit(rows: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Each row goes into the open batch with the least room that still holds it."""
    batches: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, batch), sorted
    for row in rows:
        position = bisect.bisect_left(room, (lengths[row], -1))
        if position == len(room):
            batches.append([row])
            left, batch = budget - lengths[row], len(batches) - 1
        else:
            left, batch = room.pop(position)
            batches[batch].append(row)
            left -= lengths[row]
        bisect.insort(room, (left, batch))
    return batches
