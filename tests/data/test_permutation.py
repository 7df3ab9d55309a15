from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.data.permutation import Permutation, mix


@given(st.integers(1, 3000), st.lists(st.integers(-(1 << 40), 1 << 70), max_size=4))
def test_every_item_comes_once(count: int, keys: list[int]) -> None:
    assert sorted(Permutation(count, *keys).at(0, count)) == list(range(count))


@given(st.integers(1, 500), st.data())
def test_any_stretch_is_the_same_stretch_of_the_whole(count: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    permutation = Permutation(count, 7)
    assert permutation.at(start, stop).tolist() == permutation.at(0, count)[start:stop].tolist()


def test_every_order_of_a_few_items_is_about_as_likely() -> None:
    counts = Counter(tuple(Permutation(4, seed).at(0, 4).tolist()) for seed in range(4800))
    assert len(counts) == 24
    chi_square = sum((n - 200) ** 2 / 200 for n in counts.values())
    assert chi_square < 49.7, "p = 0.001 at 23 degrees of freedom"


def test_neighbours_are_torn_apart() -> None:
    order = Permutation(10_000, 3).at(0, 10_000)
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05


def test_each_key_matters() -> None:
    orders = [Permutation(100, *keys).at(0, 100).tolist() for keys in ((1, 2), (2, 1), (1, 3), (1,))]
    assert len({tuple(order) for order in orders}) == 4


def test_the_order_of_a_key_never_changes() -> None:
    """A checkpoint's position means something only while this holds."""
    assert Permutation(10, 17, 0).at(0, 10).tolist() == [1, 8, 5, 9, 3, 2, 7, 0, 6, 4]


def test_a_huge_count_needs_no_memory() -> None:
    count = 10**15
    assert all(0 <= item < count for item in Permutation(count, 1).at(count - 100, count))


@pytest.mark.parametrize(("value", "expected"), [(0, 0xE220A8397B1DCDAF), (0x9E3779B97F4A7C15, 0x6E789E6AA1B965F4)])
def test_the_hash_is_splitmix64(value: int, expected: int) -> None:
    """The generator's published first two numbers for the seed 0."""
    assert mix(value) == expected
