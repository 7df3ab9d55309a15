"""Preference losses: trl's numbers, known answers, and the same mean for any split."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from danlu.train.losses.preference import (
    dpo_loss,
    ipo_loss,
    kto_baseline,
    kto_loss,
    nll_loss,
    odds_ratio_loss,
    orpo_loss,
    preference_parts,
    reward_loss,
    simpo_loss,
)
from danlu.train.losses.tokens import row_means, row_sums

from . import trl_peer as trl

CHOSEN, REJECTED = [3, 1, 6, 2], [2, 5, 1, 4]


def numbers(size: int, seed: int, spread: float = 1.0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread


def logprobs(size: int, seed: int) -> Tensor:
    """Log-probabilities of tokens, a leaf."""
    return (-numbers(size, seed).abs() - 0.05).requires_grad_()


class Pairs:
    """Answers of four pairs, token by token, and what a reference thinks of each answer."""

    def __init__(self) -> None:
        self.chosen, self.rejected = logprobs(sum(CHOSEN), 0), logprobs(sum(REJECTED), 1)
        self.reference = -numbers(4, 2).abs() * 3, -numbers(4, 3).abs() * 3

    def ratios(self, *, is_mean: bool = False) -> tuple[Tensor, Tensor]:
        both = [(self.chosen, CHOSEN), (self.rejected, REJECTED)]
        found = [row_sums(tokens, counts) - ref for (tokens, counts), ref in zip(both, self.reference, strict=True)]
        if is_mean:
            found = [ratio / torch.tensor(counts) for ratio, (_, counts) in zip(found, both, strict=True)]
        return found[0], found[1]

    def slopes(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, [self.chosen, self.rejected], retain_graph=True))

    def trl(self, losses: dict[str, float], beta: float) -> tuple[Tensor, dict[str, float]]:
        return trl.dpo(self.chosen, CHOSEN, self.rejected, REJECTED, *self.reference, losses, beta)


def assert_same(pairs: Pairs, ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours / 4, theirs)
    for mine, other in zip(pairs.slopes(ours / 4), pairs.slopes(theirs), strict=True):
        torch.testing.assert_close(mine, other)


# ---- trl's numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo_is_that_of_trl(beta: float) -> None:
    pairs = Pairs()
    theirs, metrics = pairs.trl({"sigmoid": 1.0}, beta)
    assert_same(pairs, dpo_loss(*pairs.ratios(), beta=beta), theirs)
    parts = preference_parts(*(beta * ratio for ratio in pairs.ratios()))
    for name, total in parts.items():
        name_there = name.replace("margin", "margins").replace("accuracy", "accuracies")
        assert float(total) / 4 == pytest.approx(metrics[name_there])


def test_dpo_of_ratios_a_token_is_that_of_trl() -> None:
    pairs = Pairs()
    assert_same(pairs, dpo_loss(*pairs.ratios(is_mean=True), beta=2.0), pairs.trl({"sigmoid_norm": 1.0}, 2.0)[0])


def test_ipo_is_that_of_trl() -> None:
    pairs = Pairs()
    assert_same(pairs, ipo_loss(*pairs.ratios(is_mean=True), beta=0.3), pairs.trl({"ipo": 1.0}, 0.3)[0])


def test_the_likelihood_term_is_that_of_trl_for_answers_of_one_length() -> None:
    """With different lengths trl's is a mean over tokens of the micro-batch, which changes with its split."""
    chosen, rejected, counts = logprobs(12, 5), logprobs(12, 6), [3, 3, 3, 3]
    reference = numbers(4, 7), numbers(4, 8)
    theirs, _ = trl.dpo(chosen, counts, rejected, counts, *reference, {"sigmoid": 1.0, "sft": 0.5}, 0.1)
    ratios = [row_sums(t, counts) - ref for t, ref in zip((chosen, rejected), reference, strict=True)]
    ours = dpo_loss(*ratios, beta=0.1) + 0.5 * nll_loss(row_means(chosen, counts))
    torch.testing.assert_close(ours / 4, theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_with_smoothed_labels_is_that_of_trl(smoothing: float) -> None:
    chosen, rejected = Pairs().ratios()
    theirs = trl.cpo(chosen, rejected, loss_type="sigmoid", beta=0.3, label_smoothing=smoothing)
    torch.testing.assert_close(dpo_loss(chosen, rejected, beta=0.3, label_smoothing=smoothing), theirs.sum())


def test_simpo_is_that_of_trl() -> None:
    chosen, rejected = -numbers(5, 1).abs(), -numbers(5, 2).abs()
    theirs = trl.cpo(chosen, rejected, loss_type="simpo", beta=2.0, simpo_gamma=0.5)
    torch.testing.assert_close(simpo_loss(chosen, rejected, beta=2.0, margin=0.5), theirs.sum())


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.3, 0.4)])
@pytest.mark.parametrize("drift", [-2.0, 1.5])
def test_kto_is_that_of_trl(weights: tuple[float, float], drift: float) -> None:
    tokens, labels = logprobs(sum(CHOSEN), 0), torch.tensor([True, False, False, True])
    reference, mismatched, mismatched_reference = -numbers(4, 2).abs(), numbers(4, 3) + drift, numbers(4, 4)
    theirs = trl.kto(
        tokens, CHOSEN, labels, reference, mismatched, mismatched_reference,
        beta=0.3, desirable=weights[0], undesirable=weights[1],
    )  # fmt: skip
    baseline = kto_baseline((mismatched - mismatched_reference).sum(), 4)
    ours = kto_loss(
        row_sums(tokens, CHOSEN) - reference, labels, baseline,
        beta=0.3, desirable_weight=weights[0], undesirable_weight=weights[1],
    )  # fmt: skip
    torch.testing.assert_close(ours / 4, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, tokens)[0] for loss in (ours / 4, theirs)))


def test_orpo_is_that_of_trl() -> None:
    chosen, rejected = logprobs(6, 1), logprobs(6, 2)
    theirs = trl.orpo(chosen.float(), rejected.float(), -chosen.float().mean(), 0.25)  # it computes in fp32
    torch.testing.assert_close((orpo_loss(chosen, rejected, beta=0.25) / 6).float(), theirs)


@pytest.mark.parametrize("margin", [None, [0.1, 1.0, 0.0]])
@pytest.mark.parametrize("centring", [None, 0.01])
def test_reward_models_have_the_loss_of_trl(margin: list[float] | None, centring: float | None) -> None:
    chosen, rejected = numbers(3, 1), numbers(3, 2)
    gap = None if margin is None else torch.tensor(margin, dtype=torch.float64)
    theirs = trl.reward(chosen, rejected, gap, centring)
    torch.testing.assert_close(reward_loss(chosen, rejected, margin=gap, centring=centring or 0.0) / 3, theirs)


# ---- known answers ---------------------------------------------------------------------------------------------------


def test_a_policy_that_is_its_reference_has_the_loss_of_a_coin() -> None:
    nothing = torch.zeros(3)
    assert float(dpo_loss(nothing, nothing, beta=0.1)) == pytest.approx(3 * math.log(2))
    assert float(dpo_loss(nothing, nothing, beta=0.1, label_smoothing=0.3)) == pytest.approx(3 * math.log(2))
    assert float(ipo_loss(nothing, nothing, beta=0.1)) == pytest.approx(3 * 25)
    assert float(kto_loss(nothing, nothing > 0, torch.tensor(0.0), beta=0.1)) == pytest.approx(1.5)


def test_the_slope_of_dpo_is_beta_times_how_wrong_it_is() -> None:
    """Rafailov et al., section 4: the gradient's weight is beta · σ(rejected's reward − chosen's)."""
    chosen, rejected = torch.tensor([0.5], requires_grad=True), torch.tensor([1.7], requires_grad=True)
    slopes = torch.autograd.grad(dpo_loss(chosen, rejected, beta=0.4), [chosen, rejected])
    weight = 0.4 / (1 + math.exp(-0.4 * 1.2))
    assert [float(slope) for slope in slopes] == pytest.approx([-weight, weight])


def test_the_odds_ratio_is_exact_for_answers_almost_sure_and_almost_impossible() -> None:
    for chosen, rejected, odds in [
        (-1e-7, -0.7, None),
        (-40.0, -80.0, 40.0),
        (math.log(0.8), math.log(0.5), math.log(4)),
    ]:
        pair = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (chosen, rejected)]
        loss = odds_ratio_loss(*pair)
        if odds is not None:
            assert loss.item() == pytest.approx(math.log1p(math.exp(-odds)), rel=1e-6)
        assert all(torch.isfinite(slope).all() for slope in torch.autograd.grad(loss, pair))


def test_the_baseline_of_kto_is_never_below_zero_and_never_learnt() -> None:
    ratios = torch.tensor([-3.0, 1.0], requires_grad=True)
    assert float(kto_baseline(ratios.sum(), 2)) == 0.0
    found = kto_baseline(-ratios.sum(), 2)
    assert float(found) == 1.0
    assert not found.requires_grad


def test_equal_rewards_do_not_count_as_right() -> None:
    parts = preference_parts(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 1.0, 3.0]))
    assert float(parts["rewards/accuracy"]) == 1.0
    assert float(parts["rewards/margin"]) == -2.0


# ---- every reduction -------------------------------------------------------------------------------------------------

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dpo": lambda a, b: dpo_loss(a, b, beta=0.3, label_smoothing=0.1),
    "ipo": lambda a, b: ipo_loss(a, b, beta=0.3),
    "kto": lambda a, b: kto_loss(torch.cat([a, b]), torch.arange(2 * len(a)) % 3 == 0, torch.tensor(0.1), beta=0.3),
    "orpo": lambda a, b: orpo_loss(a, b, beta=0.3),
    "simpo": lambda a, b: simpo_loss(a, b, beta=2.0, margin=0.5),
    "reward": lambda a, b: reward_loss(a, b, margin=torch.full_like(a, 0.2), centring=0.1),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_small_steps(name: str) -> None:
    assert torch.autograd.gradcheck(LOSSES[name], (logprobs(5, 1), logprobs(5, 2)))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "kto"])
def test_any_split_of_the_pairs_has_the_same_sum(name: str) -> None:
    chosen, rejected = logprobs(6, 3), logprobs(6, 4)
    parts = [LOSSES[name](a, b) for a, b in zip(chosen.split([1, 3, 2]), rejected.split([1, 3, 2]), strict=True)]
    torch.testing.assert_close(torch.stack(parts).sum(), LOSSES[name](chosen, rejected))
