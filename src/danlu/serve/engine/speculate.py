"""Guesses of what an answer says next, checked by the pass that computes it: what repeats costs one step, not many.

A guess is computed where it is likely enough for what one more token adds to a step, as measured; with many answers it
seldom is. Where guesses come from is in lookup.py. Knows token ids and seconds, no tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

from danlu.serve.engine.answer import Answer
from danlu.serve.engine.lookup import Guesses
from danlu.serve.engine.row import Row

_MOST = 8
"""Guesses for one answer in a step, unless it asks for another number."""
_FORGETS = 0.995
"""Weight of a step's time after the next one."""
_LIKE_AS_MANY = 8.0
"""Before anything is measured, the part of a step that does not depend on its tokens is taken for this many of them."""
_PRIOR_WEIGHT = 1.0
_CERTAIN = 0.9
"""Chance above which a guess would have to be right for nobody to look for guesses at all."""


class StepCosts:
    """Seconds of a step by its number of tokens: a straight line through what was measured lately."""

    def __init__(self) -> None:
        self.per_token = 0.0
        """Seconds that one more token adds."""
        self._base = 0.0  # seconds of a step without tokens
        self._steps = self._tokens = self._squares = self._seconds = self._products = 0.0

    def note(self, num_tokens: int, seconds: float) -> None:
        """A step took so long; far longer than expected (another process had the core) counts as twice as long."""
        if self._steps > 3.0:
            seconds = min(seconds, 2.0 * self.seconds(num_tokens))
        self._steps = _FORGETS * self._steps + 1.0
        self._tokens = _FORGETS * self._tokens + num_tokens
        self._squares = _FORGETS * self._squares + num_tokens * num_tokens
        self._seconds = _FORGETS * self._seconds + seconds
        self._products = _FORGETS * self._products + num_tokens * seconds
        mean_tokens, mean_seconds = self._tokens / self._steps, self._seconds / self._steps
        varies = self._squares - mean_tokens * self._tokens
        together = self._products - mean_tokens * self._seconds
        prior = mean_seconds / (mean_tokens + _LIKE_AS_MANY)
        slope = (together + _PRIOR_WEIGHT * prior) / (varies + _PRIOR_WEIGHT)
        self.per_token = min(max(slope, 0.0), mean_seconds / mean_tokens)
        self._base = mean_seconds - self.per_token * mean_tokens

    def seconds(self, num_tokens: int) -> float:
        """Of a step with so many tokens."""
        return max(self._base + self.per_token * num_tokens, 1e-9)

    def least_chance(self, num_tokens: int, expected: float) -> float:
        """How likely one more guess must be right so that tokens come faster with it than without, in a step with
        ``num_tokens`` tokens that is expected to give ``expected``."""
        return expected * self.per_token / self.seconds(num_tokens)


class Speculator:
    """Decides which guesses are computed. For answers of one model that can take tokens back."""

    def __init__(self) -> None:
        self.costs = StepCosts()

    def propose(self, rows: Sequence[Row]) -> None:
        """Give rows that write their drafts for the next step."""
        writers = [row for row in rows if row.is_writing and row.request.asked.beams is None]
        count = len(writers)
        pays = self.costs.least_chance(count, count) < _CERTAIN
        looked: list[tuple[Row, Guesses]] = []
        for row in writers:
            wanted = row.request.writing.options.lookup_tokens
            if not (pays or wanted) or row.pending != 1:
                continue
            guesses = _look(row.request, row.ids, wanted or _MOST)
            if wanted:
                row.drafts = list(guesses.ids)
                count += len(guesses.ids)
            elif guesses.ids:
                looked.append((row, guesses))
        for (row, guesses), number in zip(looked, self._chosen([one for _, one in looked], count), strict=True):
            row.drafts = guesses.ids[:number]

    def _chosen(self, looked: Sequence[Guesses], num_tokens: int) -> list[int]:
        """How many guesses of each answer to compute: the likeliest of all, as long as one more pays."""
        chances = [(chance, index) for index, guesses in enumerate(looked) for chance in guesses.chances()]
        taken, expected = [0] * len(looked), float(num_tokens)
        for chance, index in sorted(chances, reverse=True):
            if chance <= self.costs.least_chance(num_tokens, expected):
                break
            taken[index] += 1
            num_tokens += 1
            expected += chance
        return taken


def _look(answer: Answer, ids: Sequence[int], most: int) -> Guesses:
    """At most ``most`` guesses, and no more than the answer has room for after the next token."""
    writing = answer.writing
    guesses = answer.guesses
    if guesses is None:
        guesses = answer.guesses = Guesses(writing.source_ids or ())
    guesses.look(ids, min(most, writing.limit - len(writing.token_ids) - 1), answer.constraint)
    return guesses
