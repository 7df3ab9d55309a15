import math
import warnings

import pytest
import torch
from transformers import optimization as theirs

from danlu.core.errors import ConfigError
from danlu.train.schedule import Schedule

STEPS, WARMUP = 100, 10


def shares(**settings: object) -> list[float]:
    schedule = Schedule(num_steps=STEPS, num_warmup=WARMUP, **settings)  # pyright: ignore[reportArgumentType]
    return [schedule.share(step) for step in range(STEPS)]


def shares_of(maker: str, **settings: object) -> list[float]:
    """What a scheduler of ``transformers`` gives, a step earlier in warm-up: it begins with a rate of 0."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimiser never steps
        scheduler = getattr(theirs, maker)(optimizer, num_warmup_steps=WARMUP, **settings)
        rates: list[float] = []
        for _ in range(STEPS):
            rates.append(scheduler.get_last_lr()[0])
            scheduler.step()
    return [*rates[1:WARMUP], 1.0, *rates[WARMUP:]]


def test_warm_up_is_a_line_that_moves_from_the_first_step_on() -> None:
    assert shares(shape="constant") == [(step + 1) / WARMUP for step in range(WARMUP)] + [1.0] * (STEPS - WARMUP)


def test_cosine_is_that_of_transformers() -> None:
    expected = shares_of("get_cosine_schedule_with_warmup", num_training_steps=STEPS)
    assert shares(shape="cosine") == pytest.approx(expected)
    expected = shares_of("get_cosine_with_min_lr_schedule_with_warmup", num_training_steps=STEPS, min_lr_rate=0.2)
    assert shares(shape="cosine", final_share=0.2) == pytest.approx(expected)


def test_linear_is_that_of_transformers() -> None:
    expected = shares_of("get_linear_schedule_with_warmup", num_training_steps=STEPS)
    assert shares(shape="linear") == pytest.approx(expected)
    halfway = WARMUP + (STEPS - WARMUP) // 2
    assert shares(shape="linear", final_share=0.5)[halfway] == pytest.approx(0.75)


@pytest.mark.parametrize("decay", ["1-sqrt", "linear"])
def test_warmup_stable_decay_is_that_of_transformers(decay: str) -> None:
    expected = shares_of(
        "get_wsd_schedule", num_training_steps=STEPS, num_decay_steps=25, decay_type=decay, min_lr_ratio=0.1
    )
    found = shares(shape="wsd", num_decay=25, decay=decay, final_share=0.1)
    assert found[WARMUP:] == pytest.approx(expected[WARMUP:])  # theirs warms up from min_lr_ratio
    assert found[WARMUP : STEPS - 25] == [1.0] * (STEPS - 25 - WARMUP)


def test_the_root_falls_fast_at_first() -> None:
    schedule = Schedule(shape="wsd", num_steps=100, num_warmup=0, num_decay=16, final_share=0.2)
    assert [schedule.share(84 + n) for n in (0, 1, 4, 9)] == pytest.approx(
        [0.2 + 0.8 * (1 - math.sqrt(n / 16)) for n in (0, 1, 4, 9)]
    )


def test_steps_beyond_the_last_keep_the_final_share() -> None:
    for shape in ("cosine", "wsd", "linear"):
        assert Schedule(shape=shape, num_steps=9, num_warmup=2, num_decay=3, final_share=0.3).share(50) == 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": "linear", "num_warmup": 101}, r"Warm-up takes 101 steps, but the run has 100\. Lower warmup_steps"),
        (
            {"shape": "wsd", "num_warmup": 90, "num_decay": 20},
            r"Warm-up takes 90 steps and decay 20, but the run has 100",
        ),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule(num_steps=100, **settings)  # pyright: ignore[reportArgumentType]
