"""Packing: which rows share a batch, so that every batch is nearly full and no token is padding.

Knows lengths only; what a row holds is not its business.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence


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


def fill_rate(batches: Sequence[Sequence[int]], lengths: Sequence[int], budget: int) -> float:
    """Share of the batches' room that holds tokens."""
    return sum(lengths[row] for batch in batches for row in batch) / (len(batches) * budget) if batches else 0.0
