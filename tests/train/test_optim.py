import math

import pytest
import torch
from torch import nn

from danlu.core.errors import ConfigError
from danlu.train.optim import OptimConfig, make_optimizer, rate_at

CONFIG = OptimConfig(learning_rate=1.0, warmup_share=0.1, final_share=0.2)


def test_the_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    rates = [rate_at(step, 100, CONFIG) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    cosine = [0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * (step - 10) / 90)) for step in range(10, 100)]
    assert rates[10:] == pytest.approx(cosine)
    assert max(rates) == 1.0
    assert rates[-1] == pytest.approx(0.2, abs=0.001)


def test_no_step_has_a_rate_of_zero_however_short_the_run() -> None:
    for steps in range(1, 30):
        assert all(0 < rate_at(step, steps, OptimConfig()) <= 2e-3 for step in range(steps))
    assert rate_at(0, 1, CONFIG) == 1.0
    assert all(rate_at(s, 10, OptimConfig(warmup_share=1.0)) <= 2e-3 for s in range(12))


def test_the_optimiser_is_adam_with_decoupled_decay() -> None:
    """Three steps of Loshchilov & Hutter's algorithm 2, by hand."""
    config = OptimConfig(learning_rate=0.1, weight_decay=0.5, beta1=0.9, beta2=0.99)
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = make_optimizer([parameter], config)
    value, mean, square = 1.0, 0.0, 0.0
    for step, gradient in enumerate((0.3, -2.0, 0.7), start=1):
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.99 * square + 0.01 * gradient**2
        value -= 0.1 * 0.5 * value
        value -= 0.1 * (mean / (1 - 0.9**step)) / (math.sqrt(square / (1 - 0.99**step)) + 1e-8)
        assert float(parameter.detach()) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0\. Use a positive number such as 2e-3"),
        ({"warmup_share": 1.5}, r"warmup_share is 1\.5\. Use 0 to 1"),
        ({"final_share": -0.1}, r"final_share is -0\.1\. Use 0 to 1"),
        ({"clip_norm": 0.0}, r"clip_norm is 0\.0\. Use a positive number"),
    ],
)
def test_settings_that_cannot_train_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**changes)
