import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.data.packing import fill_rate, pack

BUDGET = 1024


def realistic(count: int, seed: int = 0) -> list[int]:
    """Lengths like those of the product-copy conversations: a fixed part and a long tail."""
    random_ = random.Random(seed)
    return [min(512, 60 + int(random_.lognormvariate(3.6, 0.6))) for _ in range(count)]


@given(st.lists(st.integers(1, 100), max_size=600), st.integers(100, 300), st.integers(0, 5), st.integers(1, 300))
def test_every_row_is_in_one_batch_and_no_batch_is_over_the_budget(
    lengths: list[int], budget: int, seed: int, window: int
) -> None:
    batches = pack(lengths, budget, seed=seed, window=window)
    assert Counter(row for batch in batches for row in batch) == Counter(range(len(lengths)))
    assert all(0 < sum(lengths[row] for row in batch) <= budget for batch in batches)


@pytest.mark.parametrize("seed", range(5))
def test_batches_of_realistic_rows_are_nearly_full(seed: int) -> None:
    lengths = realistic(5000, seed)
    assert fill_rate(pack(lengths, BUDGET, seed=seed), lengths, BUDGET) >= 0.97


def test_few_batches_of_a_small_data_set_are_wasted() -> None:
    lengths = realistic(300)
    assert len(pack(lengths, BUDGET, seed=0)) <= sum(lengths) / BUDGET + 2


def test_the_order_depends_on_the_seed_alone() -> None:
    lengths = realistic(700)
    state = random.getstate()
    assert pack(lengths, BUDGET, seed=1) == pack(lengths, BUDGET, seed=1)
    assert pack(lengths, BUDGET, seed=1) != pack(lengths, BUDGET, seed=2)
    assert random.getstate() == state


def test_long_rows_do_not_come_first() -> None:
    """Sorted batches would make training see long rows before short ones."""
    lengths = realistic(4000)
    batches = pack(lengths, BUDGET, seed=0)
    sizes = [len(batch) for batch in batches]
    halves = sum(sizes[: len(sizes) // 2]), sum(sizes[len(sizes) // 2 :])
    assert abs(halves[0] - halves[1]) < 0.1 * sum(halves)


def test_rows_that_came_late_also_come_early() -> None:
    lengths = realistic(3000)
    first = [row for batch in pack(lengths, BUDGET, seed=0)[:50] for row in batch]
    assert min(first) < 300
    assert max(first) > 2700


def test_rows_as_long_as_the_budget_stand_alone() -> None:
    batches = pack([BUDGET, BUDGET, 1], BUDGET, seed=0)
    assert sorted(map(sorted, batches)) == [[0], [1], [2]]


def test_a_row_longer_than_the_budget_is_the_callers_bug() -> None:
    with pytest.raises(AssertionError, match="rows must fit the budget"):
        pack([5, 11], 10, seed=0)


def test_no_rows_make_no_batches() -> None:
    assert pack([], BUDGET, seed=0) == []
    assert fill_rate([], [], BUDGET) == 0.0


def test_the_fill_rate_is_tokens_over_room() -> None:
    assert fill_rate([[0, 1], [2]], [3, 4, 5], 10) == pytest.approx(12 / 20)
