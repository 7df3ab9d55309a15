"""What a recommender has to beat: the most popular items, and items like those of a user's history.

Both are counted from the same histories that a model learns from and asked the same questions. Knows no network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]


class Scorer(Protocol):
    """Anything that scores all items."""

    def scores(self, history: Sequence[int]) -> Scores:
        """Of all ids (V,), higher is better."""
        ...


class Popularity:
    """How many users had an item, whatever the history."""

    def __init__(self, histories: Sequence[Sequence[int]], num_ids: int) -> None:
        self._counts = np.bincount(
            np.fromiter((i for items in histories for i in items), dtype=np.int64), minlength=num_ids
        ).astype(np.float64)

    def scores(self, history: Sequence[int]) -> Scores:
        """See ``Scorer``."""
        return self._counts.copy()


class ItemKnn:
    """Items had by the same users: the sum of cosines with the items of a history (Deshpande & Karypis 2004).

    Each item keeps its ``neighbours`` nearest ones; ``shrink`` is added to the product of lengths, so that what
    very few users had counts less.
    """

    def __init__(
        self, histories: Sequence[Sequence[int]], num_ids: int, *, neighbours: int = 50, shrink: float = 1.0
    ) -> None:
        together = np.zeros((num_ids, num_ids))
        for history in histories:
            items, counts = np.unique(np.asarray(history, dtype=np.int64), return_counts=True)
            together[np.ix_(items, items)] += np.outer(counts, counts)
        lengths = np.sqrt(together.diagonal())
        likeness = together / np.maximum(np.outer(lengths, lengths) + shrink, 1e-12)  # 0 for what nobody had
        np.fill_diagonal(likeness, 0.0)
        if neighbours < num_ids:
            least = np.partition(likeness, num_ids - neighbours, axis=1)[:, [num_ids - neighbours]]
            likeness[likeness < least] = 0.0
        self._likeness: Scores = likeness

    def scores(self, history: Sequence[int]) -> Scores:
        """See ``Scorer``."""
        return self._likeness[list(history)].sum(axis=0)


def places(scorer: Scorer, cases: Sequence[tuple[Sequence[int], int]], first: int = 1) -> list[float]:
    """Place of each target after its history, from 1, among all ids from ``first`` on that are not in the history.

    Equal scores are ordered by id; a target below ``first`` is unknown and infinitely far.
    """
    found: list[float] = []
    for history, target in cases:
        if target < first:
            found.append(math.inf)
            continue
        scores = scorer.scores(history)
        scores[list(history)] = -np.inf
        scores[:first] = -np.inf
        ahead = (scores > scores[target]).sum() + (scores[:target] == scores[target]).sum()
        found.append(1.0 + float(ahead))
    return found
