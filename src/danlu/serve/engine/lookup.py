"""What an answer may say next: what a grammar leaves no choice about, or what followed its newest tokens before (prompt
lookup; Saxena 2023).

Every guess is compared with what then came, also where it was not computed: so each answer tells how often its guesses
are right, and nothing has to be tried to find out. Knows no steps and no time.
"""

from __future__ import annotations

from collections.abc import Sequence

from danlu.serve.engine.constrain import Constraint

_LONG, _SHORT = 3, 2
"""Newest tokens that have to be alike; the longer match wins."""
_LEARNS = 0.1
"""Weight of the newest guess in how often guesses are right."""
_FORCED = 0.98
"""How likely a token is that a grammar forces: its text may also be cut into other tokens."""


class Lookup:
    """Where the newest tokens of one text stood before. A new token costs the same however long the text is."""

    def __init__(self, source: Sequence[int] = ()) -> None:
        """``source`` is what an encoder read: it stands before the text."""
        self._ids = list(source)
        self._num_source = len(self._ids)
        self._num_indexed = 0
        self._after: dict[tuple[int, ...], int] = {}

    def follow(self, ids: Sequence[int]) -> None:
        """Take the tokens by which the text has grown; none of them ever changes."""
        self._ids += ids[len(self._ids) - self._num_source :]
        known, after = self._ids, self._after
        for end in range(max(self._num_indexed, _SHORT), len(known)):
            after[known[end - 2], known[end - 1]] = end
            if end >= _LONG:
                after[known[end - 3], known[end - 2], known[end - 1]] = end
        self._num_indexed = len(known)

    def guess(self, most: int) -> list[int]:
        """What followed the last time; empty where there was none."""
        ids = self._ids
        for size in (_LONG, _SHORT):
            place = self._after.get(tuple(ids[-size:])) if len(ids) >= size else None
            if place is not None:
                return ids[place : place + most]
        return []


class Guesses:
    """Of one answer: what is guessed now, and how often guesses were right so far."""

    __slots__ = ("_after_right", "_after_wrong", "_due", "_lookup", "_num_seen", "_was_right", "forced", "ids")

    def __init__(self, source: Sequence[int] = ()) -> None:
        self.ids: list[int] = []
        """What may follow."""
        self.forced = False
        """Whether a grammar leaves no choice about them."""
        self._lookup = Lookup(source)
        self._num_seen = 0
        self._due: list[int] = []  # guesses that the next tokens are compared with
        self._was_right = False
        self._after_right, self._after_wrong = 0.8, 0.4

    def look(self, ids: Sequence[int], most: int, constraint: Constraint | None = None) -> None:
        """Compare what was guessed with what came, and guess again: at most ``most`` tokens, none that a grammar
        forbids. ids: prompt and answer."""
        self._compare(ids)
        self._lookup.follow(ids)
        found = [] if constraint is None else constraint.forced()[:most]
        self.forced = bool(found)
        if not found:
            found = self._lookup.guess(most)
            if found and constraint is not None:
                found = found[: constraint.num_valid(found)]
        self.ids = found
        self._due, self._num_seen = ([] if self.forced else found), len(ids)

    def _compare(self, ids: Sequence[int]) -> None:
        for guessed, came in zip(self._due, ids[self._num_seen :], strict=False):
            is_right = float(guessed == came)
            if self._was_right:
                self._after_right += _LEARNS * (is_right - self._after_right)
            else:
                self._after_wrong += _LEARNS * (is_right - self._after_wrong)
            self._was_right = bool(is_right)
            if not is_right:
                return

    def chances(self) -> list[float]:
        """How likely the first 1, 2, … guesses are all right."""
        if self.forced:
            return [_FORCED**count for count in range(1, len(self.ids) + 1)]
        chance = self._after_right if self._was_right else self._after_wrong
        found: list[float] = []
        for _ in self.ids:
            found.append(chance)
            chance *= self._after_right
        return found
