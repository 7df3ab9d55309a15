"""A softmax over a sample, corrected for how it was drawn, against the softmax over everything."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from danlu.train.losses.ranking import draw_items, sampled_softmax

pytestmark = pytest.mark.usefixtures("one_thread")

SCORES = torch.tensor([[1.0, -2.0, 0.5, 3.0, 0.0], [0.2, 2.0, -1.0, 0.0, 1.0]], dtype=torch.float64)
TARGETS = torch.tensor([3, 0])


def estimate(scores: Tensor, drawn: Tensor, log_expected: Tensor) -> Tensor:
    own = scores.gather(1, TARGETS.unsqueeze(1)).squeeze(1)
    return sampled_softmax(own, scores[:, drawn], log_expected, drawn == TARGETS.unsqueeze(1))


def test_drawing_every_item_once_is_the_full_softmax_and_has_its_gradient() -> None:
    mine, theirs = SCORES.clone().requires_grad_(), SCORES.clone().requires_grad_()
    loss = estimate(mine, torch.arange(5), torch.zeros(5, dtype=torch.float64))
    expected = cross_entropy(theirs, TARGETS, reduction="sum")
    torch.testing.assert_close(loss, expected)
    (own,), (other,) = torch.autograd.grad(loss, mine), torch.autograd.grad(expected, theirs)
    torch.testing.assert_close(own, other)


def test_the_sum_over_all_items_is_estimated_without_bias() -> None:
    """The mean of exp(loss) over every possible pair of draws, weighted by its probability, is exp of the full loss."""
    chances = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    row, target = SCORES[:1], TARGETS[:1]
    for first in range(5):
        for second in range(5):
            drawn = torch.tensor([first, second])
            own = row.gather(1, target.unsqueeze(1)).squeeze(1)
            loss = sampled_softmax(own, row[:, drawn], torch.log(2 * chances[drawn]), drawn == target.unsqueeze(1))
            total += chances[first] * chances[second] * loss.exp()
    torch.testing.assert_close(total, cross_entropy(row, target).exp())


def test_items_are_drawn_as_often_as_they_should_be() -> None:
    chances = torch.tensor([0.0, 0.5, 0.3, 0.2])
    torch.manual_seed(0)
    ids, log_expected = draw_items(chances, 4000)
    counts = torch.bincount(ids, minlength=4)
    assert counts[0] == 0
    torch.testing.assert_close(counts[1:] / 4000, chances[1:], atol=0.03, rtol=0)
    torch.testing.assert_close(log_expected.exp(), 4000 * chances[ids])
