"""Guesses of what follows, and how often they turn out right."""

import random
from typing import Any, cast

from danlu.serve.engine.constrain import Constraint
from danlu.serve.engine.lookup import Guesses, Lookup


def naive(ids: list[int], most: int) -> list[int]:
    """What followed the last time the newest three tokens stood there, or else the newest two."""
    for size in (3, 2):
        for start in range(len(ids) - size - 1, -1, -1):
            if ids[start : start + size] == ids[-size:] and len(ids) > size:
                return ids[start + size : start + size + most]
    return []


class FakeConstraint:
    """Forces some tokens, or forbids the token 9."""

    def __init__(self, forced: list[int]) -> None:
        self._forced = forced

    def forced(self) -> list[int]:
        return self._forced

    def num_valid(self, ids: list[int]) -> int:
        return ids.index(9) if 9 in ids else len(ids)


def held(forced: list[int]) -> Constraint:
    return cast("Constraint", cast("Any", FakeConstraint(forced)))


def test_what_followed_the_last_time_is_guessed_as_a_search_through_everything_finds_it() -> None:
    numbers = random.Random(0)
    ids: list[int] = []
    lookup = Lookup()
    for _ in range(400):
        ids += [numbers.randrange(5) for _ in range(numbers.randrange(1, 4))]
        lookup.follow(ids)
        assert lookup.guess(4) == naive(ids, 4)


def test_the_longest_and_then_the_newest_match_wins() -> None:
    lookup = Lookup()
    lookup.follow([1, 2, 3, 4, 7, 2, 3, 5, 6, 2, 3, 8, 1, 2, 3])
    assert lookup.guess(2) == [4, 7]
    lookup.follow([1, 2, 3, 4, 7, 2, 3, 5, 6, 2, 3, 8, 1, 2, 3, 0, 2, 3])
    assert lookup.guess(1) == [0]


def test_a_source_is_looked_through_too() -> None:
    lookup = Lookup([5, 6, 7, 8])
    lookup.follow([0])
    assert lookup.guess(3) == []
    lookup.follow([0, 5, 6])
    assert lookup.guess(3) == [7, 8, 0]


def test_texts_too_short_to_repeat_give_no_guess() -> None:
    for ids in ([], [1], [1, 1]):
        lookup = Lookup()
        lookup.follow(ids)
        assert lookup.guess(4) == []


def test_how_often_guesses_are_right_is_learnt_without_computing_any() -> None:
    numbers, copies, free = random.Random(1), Guesses(), Guesses()
    text = [numbers.randrange(1000) for _ in range(60)]
    for end in range(3, 120):
        copies.look((text + text)[:end], 4)
    assert copies.chances()[:1] == [] or copies.chances()[0] > 0.9
    copies.look((text + text)[:110], 4)
    assert len(copies.chances()) == 4
    assert copies.chances()[3] > 0.8
    mixed = [number for _ in range(100) for number in (1, 2, numbers.randrange(1000))]
    for end in range(3, len(mixed) + 1):
        free.look(mixed[:end], 4)
    free.look([*mixed, 1, 2], 4)
    assert free.chances()[0] < 0.2, "what follows 1, 2 is never the same"


def test_what_a_grammar_forces_comes_first_and_what_it_forbids_never() -> None:
    ids, guesses = [1, 2, 3, 9, 1, 2], Guesses()
    guesses.look(ids, 4)
    assert guesses.ids == [3, 9, 1, 2]
    guesses.look(ids, 4, held([]))
    assert (guesses.ids, guesses.forced) == ([3], False)
    guesses.look(ids, 2, held([7, 7, 7]))
    assert (guesses.ids, guesses.forced) == ([7, 7], True)
    assert min(guesses.chances()) > 0.95
