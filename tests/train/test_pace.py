import pytest
import torch
from torch import nn

from danlu.train.pace import PROBE_STEPS, Pace, peak_flops, peak_rss_bytes

CPU = torch.device("cpu")


def pace(num_steps: int = 100, *, trains: bool = True) -> Pace:
    weight = nn.Parameter(torch.zeros(30, 20), requires_grad=trains)
    return Pace({"w": weight}, CPU, torch.float32, num_steps)


def test_the_peak_is_measured_once_and_moves_no_random_numbers() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert peak_flops(CPU, torch.float32) > 1e8
    assert torch.equal(torch.get_rng_state(), before)
    assert peak_flops(CPU, torch.float32) == peak_flops(CPU, torch.float32)


@pytest.mark.parametrize(("trains", "flops"), [(True, 6 * 600), (False, 4 * 600)])
def test_frozen_weights_cost_two_thirds(trains: bool, flops: int) -> None:
    share = pace(trains=trains).share_of_peak(1000, 2.0)
    assert share == pytest.approx(flops * 1000 / 2.0 / peak_flops(CPU, torch.float32))


def test_the_plan_is_told_once_after_the_first_steps() -> None:
    one = pace(num_steps=100)
    said = [one.after_step(50, 0.5, step) for step in range(1, 40)]
    assert [number for number, text in enumerate(said, start=1) if text] == [PROBE_STEPS]
    assert said[PROBE_STEPS - 1].startswith("Plan: 100 tokens/s, 90 steps left in about 0:45, ")
    assert said[PROBE_STEPS - 1].endswith(("(estimated).", "(measured)."))


def test_a_short_run_needs_no_plan() -> None:
    one = pace(num_steps=20)
    assert not any(one.after_step(50, 0.5, step) for step in range(1, 21))


def test_a_resumed_run_plans_what_is_left() -> None:
    one = pace(num_steps=100)
    said = [one.after_step(50, 0.5, step) for step in range(51, 61)]
    assert "40 steps left in about 0:20" in (said[-1] or "")


def test_peak_memory_is_of_this_process() -> None:
    assert 50e6 < peak_rss_bytes() < 1e12
