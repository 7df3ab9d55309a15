"""Which rows each step sees: a pure function of the seed and the step, so a resumed run needs no state.

A step's rows are the same however many ranks and micro-batches they are spread over. Knows lengths only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from danlu.data.packing import fill_rate, pack

Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)


class Batches(Protocol[Item_co]):
    """What a run asks for its data."""

    @property
    def per_epoch(self) -> int:
        """Steps in which every row is seen once."""
        ...

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step, about."""
        ...

    def at(self, step: int, rank: int, world_size: int) -> Sequence[Sequence[Item_co]]:
        """Micro-batches of one rank in step ``step`` (from 0); together the ranks have the whole batch."""
        ...


class RowBatches(Generic[Item]):
    """Rows of known lengths, epoch after epoch, each shuffled by its own seed."""

    def __init__(
        self,
        rows: Sequence[Item],
        length_of: Callable[[Item], int],
        *,
        seed: int,
        tokens_per_step: int | None = None,
        rows_per_step: int | None = None,
        micro_tokens: int | None = None,
    ) -> None:
        """A step has rows of ``tokens_per_step`` tokens packed best-fit, or ``rows_per_step`` rows. A micro-batch has
        at most ``micro_tokens`` (or one row)."""
        assert (tokens_per_step is None) != (rows_per_step is None), "one of the two"
        self._rows = rows
        self._lengths = [length_of(row) for row in rows]
        self._seed = seed
        self._tokens, self._count = tokens_per_step, rows_per_step
        self._micro_tokens = micro_tokens
        self._epochs: list[list[list[int]]] = []
        self.per_epoch = len(self._epoch(0))
        """See ``Batches``."""
        self.tokens_per_step = sum(self._lengths) // self.per_epoch
        """See ``Batches``."""

    @property
    def fill(self) -> float:
        """Share of the steps' room that holds tokens, when packed."""
        return 1.0 if self._tokens is None else fill_rate(self._epoch(0), self._lengths, self._tokens)

    def at(self, step: int, rank: int = 0, world_size: int = 1) -> list[list[Item]]:
        """See ``Batches.at``."""
        epoch, start = 0, 0
        while step - start >= len(self._epoch(epoch)):
            start += len(self._epoch(epoch))
            epoch += 1
        whole = self._epoch(epoch)[step - start]
        parts = split_rows(whole, self._lengths, self._micro_tokens, world_size)
        return [[self._rows[row] for row in part] for part in parts[rank::world_size]]

    def _epoch(self, number: int) -> list[list[int]]:
        while len(self._epochs) <= number:
            seed = self._seed + len(self._epochs)
            if self._tokens is not None:
                self._epochs.append(pack(self._lengths, self._tokens, seed=seed))
            else:
                order = list(range(len(self._rows)))
                random.Random(seed).shuffle(order)
                assert self._count is not None
                self._epochs.append([order[i : i + self._count] for i in range(0, len(order), self._count)])
        return self._epochs[number]


def split_rows(
    rows: Sequence[int], lengths: Sequence[int], micro_tokens: int | None, world_size: int
) -> list[list[int]]:
    """Rows as micro-batches of about equal tokens, at most ``micro_tokens`` each where rows allow it.

    Their number is a multiple of ``world_size``; with fewer rows than that some are empty.
    """
    total = sum(lengths[row] for row in rows)
    rounds = 1 if micro_tokens is None else max(1, -(-total // (micro_tokens * world_size)))
    if rounds * world_size == 1:
        return [list(rows)]
    while True:
        parts: list[list[int]] = [[] for _ in range(rounds * world_size)]
        sizes = [0] * len(parts)
        for row in sorted(rows, key=lambda row: (-lengths[row], row)):  # the longest first, each to the emptiest
            emptiest = sizes.index(min(sizes))
            parts[emptiest].append(row)
            sizes[emptiest] += lengths[row]
        if micro_tokens is None or max(sizes) <= max(micro_tokens, *(lengths[row] for row in rows)):
            return parts
        rounds += 1
