import itertools

import pytest

from danlu.train.batches import RowBatches, split_rows

LENGTHS = [5, 9, 3, 7, 1, 8, 2, 6, 4, 10, 9, 9]


def batches(**options: int) -> RowBatches[int]:
    return RowBatches(list(range(len(LENGTHS))), LENGTHS.__getitem__, seed=3, **options)


def rows_of(found: list[list[int]]) -> list[int]:
    return sorted(itertools.chain.from_iterable(found))


def test_an_epoch_of_packed_steps_has_every_row_once_and_keeps_the_budget() -> None:
    packed = batches(tokens_per_step=20)
    steps = [packed.at(step) for step in range(packed.per_epoch)]
    assert rows_of([part for step in steps for part in step]) == list(range(len(LENGTHS)))
    assert all(sum(LENGTHS[row] for part in step for row in part) <= 20 for step in steps)
    assert packed.fill == sum(LENGTHS) / (20 * packed.per_epoch)


def test_steps_of_a_number_of_rows_have_that_many_and_epochs_differ_in_order() -> None:
    by_rows = batches(rows_per_step=5)
    assert by_rows.per_epoch == 3
    first, second = ([by_rows.at(step)[0] for step in range(start, start + 3)] for start in (0, 3))
    assert [len(rows) for rows in first] == [5, 5, 2]
    assert rows_of(first) == rows_of(second) == list(range(len(LENGTHS)))
    assert first != second


def test_a_step_is_the_same_whenever_it_is_asked_for() -> None:
    one, two = batches(tokens_per_step=20), batches(tokens_per_step=20)
    backwards = [one.at(step) for step in reversed(range(12))][::-1]
    assert backwards == [two.at(step) for step in range(12)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro_tokens", [None, 10, 15])
def test_ranks_and_micro_batches_only_split_a_step(world_size: int, micro_tokens: int | None) -> None:
    whole = batches(tokens_per_step=30)
    split = batches(tokens_per_step=30, **({} if micro_tokens is None else {"micro_tokens": micro_tokens}))
    for step in range(8):
        parts = [split.at(step, rank, world_size) for rank in range(world_size)]
        assert rows_of([part for rank in parts for part in rank]) == rows_of(whole.at(step))
        assert len({len(rank) for rank in parts}) == 1, "ranks must do equally many passes"
        if micro_tokens is not None:
            assert all(sum(LENGTHS[r] for r in part) <= micro_tokens for rank in parts for part in rank)


def test_a_row_longer_than_a_micro_batch_stands_alone() -> None:
    assert sorted(map(sorted, split_rows([1, 3, 4, 6], LENGTHS, 8, 1))) == [[1], [3], [4, 6]]


def test_fewer_rows_than_ranks_leave_some_without() -> None:
    assert split_rows([7], LENGTHS, None, 3) == [[7], [], []]
