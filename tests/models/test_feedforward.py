"""Feed-forward layers against their formulas."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from danlu.models import feedforward
from danlu.models.attend import PackedAttend
from danlu.models.attention import Places
from danlu.models.feedforward import Activation, FeedForward, FeedForwardConfig, GatedFeedForward

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.linspace(-2.0, 2.0, 24).view(3, 8)
NOWHERE: tuple[Any, Any] = (Places(torch.arange(3), {}), PackedAttend([3]))


@pytest.mark.parametrize("bias", [True, False])
def test_plain_and_gated_layers_are_their_formulas(bias: bool) -> None:
    torch.manual_seed(0)
    plain = FeedForwardConfig(width=12, activation="gelu", gated=False, bias=bias).make(8)
    assert isinstance(plain, FeedForward)
    expected = plain.down(functional.gelu(plain.up(X)))
    torch.testing.assert_close(plain(X, *NOWHERE), expected)
    gated = FeedForwardConfig(width=12, bias=bias).make(8)
    assert isinstance(gated, GatedFeedForward)
    gate, up = gated.gate_up(X).split(12, dim=-1)
    torch.testing.assert_close(gated(X, *NOWHERE), gated.down(functional.silu(gate) * up))


@pytest.mark.parametrize("gated", [True, False])
def test_inner_values_are_dropped_in_training_only(gated: bool) -> None:
    torch.manual_seed(0)
    layer = FeedForwardConfig(width=400, gated=gated, dropout=0.5).make(8)
    with torch.no_grad():
        plain = layer.eval()(X, *NOWHERE)
        assert torch.equal(layer(X, *NOWHERE), plain)
        layer.train()
        mean = torch.stack([layer(X, *NOWHERE) for _ in range(500)]).mean(dim=0)
    assert not torch.equal(layer(X, *NOWHERE), plain)
    torch.testing.assert_close(mean, plain, atol=0.05, rtol=0.0)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu"])
def test_gradients_of_gated_layers_are_right(activation: Activation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedforward, "_AT_ONCE", 48)  # two rows at a time
    torch.manual_seed(0)
    layer = FeedForwardConfig(width=12, activation=activation, bias=True).make(8).double()
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x, *NOWHERE), (x,))  # pyright: ignore[reportUnknownLambdaType]
