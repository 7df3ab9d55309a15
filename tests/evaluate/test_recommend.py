"""The baselines of recommendation, by hand arithmetic."""

import math

import numpy as np
import pytest

from danlu.evaluate.recommend import ItemKnn, Popularity, places

HISTORIES = [(1, 2), (1, 2, 3), (1, 4), (2, 3)]


def test_popularity_counts_users() -> None:
    assert Popularity(HISTORIES, 6).scores(()).tolist() == [0, 3, 3, 2, 1, 0]


def test_neighbours_are_items_of_the_same_users() -> None:
    found = ItemKnn(HISTORIES, 6, neighbours=6, shrink=0.0)
    expected = [0, 0, 2 / 3, 1 / math.sqrt(6), 1 / math.sqrt(3), 0]
    np.testing.assert_allclose(found.scores((1,)), expected)
    both = [0, 2 / 3, 2 / 3, 3 / math.sqrt(6), 1 / math.sqrt(3), 0]
    np.testing.assert_allclose(found.scores((1, 2)), both)


def test_only_the_nearest_neighbours_count_and_rare_ones_less() -> None:
    nearest = ItemKnn(HISTORIES, 6, neighbours=1, shrink=0.0)
    assert np.flatnonzero(nearest.scores((1,))).tolist() == [2]
    shrunk = ItemKnn(HISTORIES, 6, neighbours=6, shrink=1.0).scores((1,))
    np.testing.assert_allclose(shrunk[[2, 4]], [2 / 4, 1 / (math.sqrt(3) + 1)])


def test_places_leave_out_what_was_had_and_what_is_no_item() -> None:
    popular = Popularity(HISTORIES, 6)
    assert places(popular, [((), 1), ((), 2), ((1, 2), 4), ((1,), 5), ((1,), 0)]) == [1, 2, 2, 4, math.inf]


@pytest.mark.parametrize("shrink", [0.0, 1.0])
def test_an_item_that_nobody_had_is_like_no_other(shrink: float) -> None:
    found = ItemKnn(HISTORIES, 6, neighbours=6, shrink=shrink)
    assert found.scores((5,)).tolist() == [0.0] * 6
