"""Policy losses: trl's numbers, known answers, and the same mean for any split."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from danlu.core.errors import ConfigError
from danlu.train.losses.policy import (
    PolicyConfig,
    PolicyLoss,
    advantages,
    kl_estimate,
    num_counted,
    policy_loss,
    reduce,
    reinforce_loss,
)

from . import trl_peer as trl

COUNTS = [3, 1, 6, 2]
LONGEST = 9


def numbers(size: int, seed: int, spread: float = 1.0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread


def tokens() -> Tensor:
    return (-numbers(sum(COUNTS), 0).abs() - 0.05).requires_grad_()


GAINS = numbers(4, 1)


def moved(logprobs: Tensor, seed: int, spread: float = 0.4) -> Tensor:
    """What another policy said of the same tokens."""
    return logprobs.detach() + numbers(len(logprobs), seed, spread)


def value(loss: PolicyLoss) -> Tensor:
    return loss.total / loss.count


# ---- trl's numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_sequence_ratio", [False, True], ids=["token", "sequence"])
@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_the_loss_is_that_of_trl(loss_type: Any, kl_weight: float, is_sequence_ratio: bool) -> None:
    config = PolicyConfig(
        loss_type=loss_type, clip_low=0.2, clip_high=0.28, kl_weight=kl_weight, is_sequence_ratio=is_sequence_ratio
    )
    logprobs = tokens()
    old, reference = moved(logprobs, 2), moved(logprobs, 3)
    ours = policy_loss(logprobs, COUNTS, GAINS, config, old=old, reference=reference, longest=LONGEST)
    theirs, metrics = trl.grpo(
        logprobs, COUNTS, GAINS, old, reference, loss_type=loss_type, low=0.2, high=0.28, beta=kl_weight,
        level="sequence" if is_sequence_ratio else "token", longest=LONGEST,
    )  # fmt: skip
    torch.testing.assert_close(value(ours), theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logprobs)[0] for loss in (value(ours), theirs)))
    if loss_type == "dapo" and not is_sequence_ratio:
        assert float(ours.parts["clipped"]) / ours.count == pytest.approx(metrics["clip_ratio/region_mean"][0])
        if kl_weight:
            assert float(ours.parts["kl"]) / ours.count == pytest.approx(metrics["kl"][0])


def test_without_old_numbers_the_first_step_is_that_of_trl() -> None:
    logprobs, config = tokens(), PolicyConfig(loss_type="grpo")
    theirs, _ = trl.grpo(
        logprobs, COUNTS, GAINS, None, None, loss_type="grpo", low=0.2, high=0.2, beta=0.0, level="token", longest=9
    )
    ours = value(policy_loss(logprobs, COUNTS, GAINS, config))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logprobs)[0] for loss in (ours, theirs)))


# ---- advantages ------------------------------------------------------------------------------------------------------

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [3.0, 3.0, 3.0, 3.0], [0.0, 2.0, 4.0, 10.0]])


def test_a_group_is_compared_with_its_own_mean_and_spread() -> None:
    found = advantages(REWARDS)
    torch.testing.assert_close(found, (REWARDS - REWARDS.mean(1, True)) / (REWARDS.std(1, keepdim=True) + 1e-4))
    assert found[1].tolist() == [0.0] * 4, "equal rewards teach nothing"


def test_dr_grpo_does_not_divide_by_the_spread() -> None:
    torch.testing.assert_close(advantages(REWARDS, scale="none"), REWARDS - REWARDS.mean(1, True))


def test_the_spread_of_the_whole_batch_keeps_groups_comparable() -> None:
    found = advantages(REWARDS, scale="batch")
    torch.testing.assert_close(found, (REWARDS - REWARDS.mean(1, True)) / (REWARDS.std() + 1e-4))


def test_each_answer_can_be_compared_with_the_others_of_its_group() -> None:
    found = advantages(REWARDS, baseline="leave_one_out", scale="none")
    assert found[2].tolist() == pytest.approx([0 - 16 / 3, 2 - 14 / 3, 4 - 4, 10 - 2])
    torch.testing.assert_close(found, (REWARDS - REWARDS.mean(1, True)) * 4 / 3)
    assert advantages(torch.tensor([[5.0]]), baseline="leave_one_out", scale="none").tolist() == [[0.0]]


def test_reinforce_compares_with_all_answers() -> None:
    found = advantages(REWARDS, baseline="batch", scale="none")
    torch.testing.assert_close(found, REWARDS - REWARDS.mean())


def test_a_reward_that_was_not_given_counts_nowhere() -> None:
    nan = math.nan
    found = advantages(torch.tensor([[1.0, nan, 3.0], [nan, nan, nan], [nan, 4.0, nan]]), scale="none")
    assert found.tolist() == [[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    scaled = advantages(torch.tensor([[1.0, nan, 3.0]]))
    torch.testing.assert_close(scaled, torch.tensor([[-1.0, 0.0, 1.0]]) / (math.sqrt(2) + 1e-4))


# ---- known answers ---------------------------------------------------------------------------------------------------


def test_the_first_step_goes_along_the_policy_gradient() -> None:
    """Where the policy has not moved, the clipped loss has REINFORCE's slope."""
    logprobs = tokens()
    config = PolicyConfig(loss_type="dr_grpo")
    clipped = policy_loss(logprobs, COUNTS, GAINS, config, longest=1).total
    plain = reinforce_loss(logprobs, COUNTS, GAINS)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logprobs)[0] for loss in (clipped, plain)))


@pytest.mark.parametrize(
    ("ratio", "gain", "slope"), [(1.5, 1.0, 0.0), (1.5, -1.0, 1.5), (0.5, -1.0, 0.0), (0.5, 1.0, -0.5)]
)
def test_what_has_moved_far_enough_moves_no_further(ratio: float, gain: float, slope: float) -> None:
    logprobs = torch.tensor([math.log(0.3)], requires_grad=True)
    old = logprobs.detach() - math.log(ratio)
    found = policy_loss(logprobs, [1], torch.tensor([gain]), PolicyConfig(), old=old)
    assert torch.autograd.grad(found.total, logprobs)[0].item() == pytest.approx(slope)
    assert found.parts["clipped"].item() == (slope == 0.0)


def test_the_divergence_is_unbiased_and_never_negative() -> None:
    mine, other = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.3, 0.3, 0.4]).log()
    estimates = kl_estimate(mine, other)
    assert (estimates >= 0).all()
    assert float((mine.exp() * estimates).sum()) == pytest.approx(float((mine.exp() * (mine - other)).sum()))


def test_a_long_answer_weighs_as_much_as_a_short_one_in_grpo_and_more_in_dapo() -> None:
    def share(**settings: Any) -> float:
        logprobs = tokens()
        total = policy_loss(logprobs, COUNTS, torch.ones(4), PolicyConfig(**settings), longest=LONGEST).total
        slopes = torch.autograd.grad(total, logprobs)[0].split(COUNTS)
        return (slopes[2].sum() / slopes[1].sum()).item()

    assert share(loss_type="grpo") == pytest.approx(1)
    assert share(loss_type="dapo") == pytest.approx(6)
    assert share(loss_type="dr_grpo") == pytest.approx(6)


# ---- every reduction -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("is_sequence_ratio", [False, True])
def test_gradients_are_those_of_small_steps(loss_type: Any, is_sequence_ratio: bool) -> None:
    config = PolicyConfig(loss_type=loss_type, kl_weight=0.2, is_sequence_ratio=is_sequence_ratio)
    logprobs = tokens()
    old, reference = moved(logprobs, 2), moved(logprobs, 3)

    def loss(x: Tensor) -> Tensor:
        return policy_loss(x, COUNTS, GAINS, config, old=old, reference=reference, longest=LONGEST).total

    assert torch.autograd.gradcheck(loss, (logprobs,))


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_any_split_of_the_answers_has_the_same_mean(loss_type: Any) -> None:
    config = PolicyConfig(loss_type=loss_type, kl_weight=0.2)
    logprobs = tokens()
    old, reference = moved(logprobs, 2), moved(logprobs, 3)

    def part(rows: slice, places: slice) -> PolicyLoss:
        return policy_loss(
            logprobs[places], COUNTS[rows], GAINS[rows], config, old=old[places], reference=reference[places],
            longest=LONGEST,
        )  # fmt: skip

    whole = part(slice(None), slice(None))
    parts = [part(slice(0, 1), slice(0, 3)), part(slice(1, 4), slice(3, 12))]
    assert sum(p.count for p in parts) == whole.count
    torch.testing.assert_close(parts[0].total + parts[1].total, whole.total)
    for name, total in whole.parts.items():
        torch.testing.assert_close(parts[0].parts[name] + parts[1].parts[name], total)


def test_numbers_for_the_curve_are_means_of_what_the_loss_counts() -> None:
    ones = torch.ones(sum(COUNTS))
    for loss_type in ("grpo", "dapo", "dr_grpo"):
        config = dataclasses.replace(PolicyConfig(), loss_type=loss_type)
        assert float(reduce(ones, COUNTS, config)) / num_counted(COUNTS, config) == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_low": 0.0}, r"clip_low is 0\.0\. Use a positive number"),
        ({"clip_high": -1.0}, r"clip_high is -1\.0\. Use a positive number"),
        ({"clip_low": 1.0}, r"clip_low is 1\.0\. Use less than 1"),
        ({"kl_weight": -0.1}, r"kl_weight is -0\.1\. Use 0 or more"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PolicyConfig(**changes)
