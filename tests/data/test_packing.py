import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.data.packing import Piece, bucket, fill_rate, pack, pack_documents, padded_fill_rate

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


# documents


def documents(count: int, seed: int = 0) -> list[int]:
    """Lengths like those of a mixture of poems and chapters: many short, a few much longer than a sequence."""
    random_ = random.Random(seed)
    return [min(20_000, max(8, int(random_.lognormvariate(4.3, 1.0)))) for _ in range(count)]


@given(st.lists(st.integers(0, 50), max_size=100), st.integers(1, 30), st.integers(0, 3))
def test_every_token_of_every_document_is_in_one_sequence(lengths: list[int], length: int, seed: int) -> None:
    sequences = pack_documents(lengths, length, seed=seed)
    pieces = [piece for sequence in sequences for piece in sequence]
    tokens = Counter((p.document, place) for p in pieces for place in range(p.start, p.stop))
    assert tokens == Counter((d, place) for d, n in enumerate(lengths) for place in range(n))
    assert all(sum(p.stop - p.start for p in sequence) <= length for sequence in sequences)
    assert all(p.start % length == 0 for p in pieces), "cut into whole sequences and a rest"


@pytest.mark.parametrize("length", [256, 1024])
def test_sequences_of_documents_are_nearly_full(length: int) -> None:
    lengths = documents(3000)
    sequences = pack_documents(lengths, length, seed=0)
    assert sum(lengths) / (len(sequences) * length) >= 0.97


def test_a_document_that_fits_stays_whole() -> None:
    assert pack_documents([10], 10, seed=0) == [[Piece(0, 0, 10)]]
    assert sorted(pack_documents([12], 5, seed=0)) == [[Piece(0, 0, 5)], [Piece(0, 5, 10)], [Piece(0, 10, 12)]]


# buckets


@given(st.lists(st.integers(1, 100), max_size=300), st.integers(50, 400), st.integers(1, 16), st.integers(1, 100))
def test_padded_batches_hold_every_row_once_within_the_budget(
    lengths: list[int], budget: int, multiple_of: int, window: int
) -> None:
    batches = bucket(lengths, budget, seed=1, multiple_of=multiple_of, window=window)
    assert Counter(row for batch in batches for row in batch) == Counter(range(len(lengths)))
    for batch in batches:
        longest = -(-max(lengths[row] for row in batch) // multiple_of) * multiple_of
        assert len(batch) == 1 or len(batch) * longest <= budget


def test_rows_of_like_length_stand_together_and_little_is_padding() -> None:
    lengths = realistic(4000)
    batches = bucket(lengths, 4096, seed=0)
    assert padded_fill_rate(batches, lengths) >= 0.97
    shuffled = [list(range(start, start + 16)) for start in range(0, 4000, 16)]
    assert padded_fill_rate(shuffled, lengths) < 0.65


def test_lengths_rounded_up_leave_few_shapes() -> None:
    lengths = realistic(2000)
    longest = {-(-max(lengths[row] for row in b) // 32) for b in bucket(lengths, 4096, seed=0, multiple_of=32)}
    assert len(longest) <= 512 // 32
    assert padded_fill_rate(bucket(lengths, 4096, seed=0, multiple_of=32), lengths, 32) >= 0.8


def test_buckets_are_shuffled_by_the_seed_alone() -> None:
    lengths = realistic(700)
    assert bucket(lengths, 2048, seed=1) == bucket(lengths, 2048, seed=1) != bucket(lengths, 2048, seed=2)
    sizes = [len(batch) for batch in bucket(lengths, 2048, seed=1)]
    assert sizes != sorted(sizes)


def test_nothing_to_pad_is_no_batch() -> None:
    assert bucket([], 10, seed=0) == []
    assert padded_fill_rate([], []) == 0.0
