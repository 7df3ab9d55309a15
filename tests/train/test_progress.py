import math

import pytest

from danlu.core.errors import TrainError
from danlu.train.progress import MAX_SKIPPED_STEPS, Progress, RecentLosses


def test_steps_are_counted_and_a_good_one_forgives_those_that_were_skipped() -> None:
    done = Progress()
    for is_skipped in (*[True] * (MAX_SKIPPED_STEPS - 1), False, True):
        done.count(10, 0.5, is_skipped=is_skipped)
    assert (done.step, done.tokens, done.seconds) == (6, 60, 3.0)
    assert (done.skipped, done.skipped_in_a_row) == (5, 1)


def test_too_many_skipped_steps_in_a_row_stop() -> None:
    done = Progress(skipped_in_a_row=MAX_SKIPPED_STEPS - 1)
    with pytest.raises(TrainError, match=r"not a number 5 steps in a row \(up to step 1\)\. Lower optim"):
        done.count(1, 1.0, is_skipped=True)


def test_the_best_validation_is_remembered_and_worse_ones_are_counted() -> None:
    done = Progress(step=1)
    assert [done.is_best(loss) for loss in (2.0, 2.0, 3.0)] == [True, False, False]
    assert (done.best_loss, done.best_step, done.worse_in_a_row) == (2.0, 1, 2)
    done.step = 4
    assert done.is_best(1.0)
    assert (done.best_step, done.worse_in_a_row) == (4, 0)


def test_a_loss_far_above_the_last_ones_is_a_spike_but_not_among_the_first_few() -> None:
    recent = RecentLosses()
    recent.extend([2.0, 2.1] * 10)
    assert not recent.is_spike(9.0)
    recent.extend([2.0, 2.1] * 10)
    assert recent.usual == pytest.approx(2.05)
    assert [recent.is_spike(loss) for loss in (2.3, 2.4, math.nan)] == [False, True, False]
