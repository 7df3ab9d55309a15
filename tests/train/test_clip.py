import math

import pytest
import torch
from torch import nn

from danlu.train.clip import clip_by_norm


def test_gradients_shrink_to_the_norm_and_the_norm_before_comes_back() -> None:
    gradients = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    assert clip_by_norm(gradients, 1.0) == pytest.approx(5.0)
    assert gradients["a"].tolist() == pytest.approx([0.6, 0.0])
    assert gradients["b"].item() == pytest.approx(0.8)


def test_clipping_is_torchs() -> None:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((5, 3), (7,), ())]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    ours = {str(index): p.grad.clone() for index, p in enumerate(parameters) if p.grad is not None}
    assert clip_by_norm(ours, 0.3) == pytest.approx(float(nn.utils.clip_grad_norm_(parameters, 0.3)))
    for gradient, parameter in zip(ours.values(), parameters, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=0)


@pytest.mark.parametrize("limit", [None, 10.0])
def test_gradients_that_are_small_enough_stay_as_they_are(limit: float | None) -> None:
    gradients = {"a": torch.tensor([3.0, 4.0])}
    assert clip_by_norm(gradients, limit) == pytest.approx(5.0)
    assert gradients["a"].tolist() == [3.0, 4.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_no_number_leaves_every_gradient_alone(bad: float) -> None:
    gradients = {"a": torch.tensor([3.0]), "b": torch.tensor([bad])}
    assert not math.isfinite(clip_by_norm(gradients, 1.0))
    assert gradients["a"].item() == 3.0


def test_no_gradients_have_no_norm() -> None:
    assert clip_by_norm({}, 1.0) == 0.0
