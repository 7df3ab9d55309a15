"""What each method reads of answers, and which settings it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from danlu.core.errors import ConfigError
from danlu.train.comparisons import Dpo, Ipo, Kto, Orpo, Said, Simpo
from danlu.train.losses.preference import dpo_loss, ipo_loss, nll_loss, orpo_loss, simpo_loss

CHOSEN = Said(torch.tensor([-4.0, -6.0]), torch.tensor([4, 2]), torch.tensor([-5.0, -5.0]))
REJECTED = Said(torch.tensor([-9.0, -3.0]), torch.tensor([3, 3]), torch.tensor([-7.0, -4.0]))
RATIOS = torch.tensor([1.0, -1.0]), torch.tensor([-2.0, 1.0])
MEANS = torch.tensor([-1.0, -3.0]), torch.tensor([-3.0, -1.0])


def test_dpo_reads_log_ratios() -> None:
    loss, parts = Dpo(beta=0.5, label_smoothing=0.1)(CHOSEN, REJECTED)
    torch.testing.assert_close(loss, dpo_loss(*RATIOS, beta=0.5, label_smoothing=0.1))
    assert parts["rewards/chosen"].item() == 0.0
    assert parts["rewards/margin"].item() == pytest.approx(0.5 * (3 - 2))
    assert Dpo().needs_reference


def test_dpo_without_a_reference_reads_log_probabilities() -> None:
    method = Dpo(reference_free=True)
    without = [Said(one.sums, one.counts, None) for one in (CHOSEN, REJECTED)]
    torch.testing.assert_close(method(*without)[0], dpo_loss(CHOSEN.sums, REJECTED.sums, beta=0.1))
    assert not method.needs_reference


def test_dpo_can_count_tokens_alike_and_keep_the_chosen_answer_likely() -> None:
    loss, _ = Dpo(per_token=True, nll_weight=0.5)(CHOSEN, REJECTED)
    means = [ratio / one.counts for ratio, one in zip(RATIOS, (CHOSEN, REJECTED), strict=True)]
    torch.testing.assert_close(loss, dpo_loss(*means, beta=0.1) + 0.5 * nll_loss(MEANS[0]))


def test_the_others_read_numbers_a_token() -> None:
    means = [ratio / one.counts for ratio, one in zip(RATIOS, (CHOSEN, REJECTED), strict=True)]
    torch.testing.assert_close(Ipo(beta=0.2)(CHOSEN, REJECTED)[0], ipo_loss(*means, beta=0.2))
    torch.testing.assert_close(Orpo(beta=0.2)(CHOSEN, REJECTED)[0], orpo_loss(*MEANS, beta=0.2))
    torch.testing.assert_close(Simpo(margin=0.3)(CHOSEN, REJECTED)[0], simpo_loss(*MEANS, beta=2.0, margin=0.3))
    assert [method.needs_reference for method in (Ipo(), Orpo(), Simpo(), Kto())] == [True, False, False, True]


def test_kto_tells_how_often_an_answer_is_on_the_right_side() -> None:
    answers = Said(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([1, 1, 1]), torch.tensor([-2.0, -2.5, -2.0]))
    _, parts = Kto(beta=0.5)(answers, torch.tensor([True, False, False]), torch.tensor(0.25))
    assert parts["rewards/accuracy"].item() == 2
    assert parts["rewards/margin"].item() == pytest.approx(0.5 * (0.75 - 0.25 + 1.25))
    assert parts["kl"].item() == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dpo(beta=0.0), r"dpo\.beta is 0\.0\. Use a positive number"),
        (lambda: Dpo(label_smoothing=0.5), r"dpo\.label_smoothing is 0\.5\. Use 0 or more, and less than 0\.5"),
        (lambda: Dpo(nll_weight=-1.0), r"dpo\.nll_weight is -1\.0\. Use 0 or more"),
        (lambda: Ipo(beta=-1.0), r"ipo\.beta is -1\.0\. Use a positive number"),
        (lambda: Orpo(beta=0.0), r"orpo\.beta is 0\.0\. Use a positive number"),
        (lambda: Simpo(beta=0.0), r"simpo\.beta is 0\.0\. Use a positive number"),
        (lambda: Kto(desirable_weight=0.0), r"kto\.desirable_weight is 0\.0\. Use a positive number"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
