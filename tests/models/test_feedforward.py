"""Feed-forward layers against their formulas."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from danlu.models import feedforward
from danlu.models.attend import PackedAttend
from danlu.models.attention import Places
from danlu.models.feedforward import Activation, FeedForward, FeedForwardConfig, GatedFeedForward
from danlu.models.linear import Linear

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
    assert isinstance(layer, GatedFeedForward)
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    weight = layer.down.weight.detach().clone().requires_grad_()

    def whole(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"down.weight": weight}, (x, *NOWHERE))

    assert torch.autograd.gradcheck(whole, (x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_inner_values_that_are_made_again_give_the_same_gradients(dtype: torch.dtype, is_frozen: bool) -> None:
    torch.manual_seed(0)
    layer = FeedForwardConfig(width=96).make(64).to(dtype)
    assert isinstance(layer, GatedFeedForward)
    layer.down.weight.requires_grad_(not is_frozen)
    given = torch.randn(40, 64, dtype=dtype)

    def gradients() -> tuple[list[torch.Tensor | None], int]:
        kept: dict[int, int] = {}
        layer.zero_grad()
        x = given.clone().requires_grad_()

        def keep(t: torch.Tensor) -> torch.Tensor:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = layer(x, *NOWHERE)
        y.float().square().sum().backward()
        return [y, x.grad, layer.gate_up.weight.grad, layer.down.weight.grad], sum(kept.values())

    ours, our_bytes = gradients()
    layer.down.__class__ = Another  # the inner values are kept
    theirs, their_bytes = gradients()
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None) == (is_frozen and one is None)
        assert one is None or other is None or torch.equal(one, other)
    assert their_bytes - our_bytes == (0 if is_frozen else 40 * 96 * dtype.itemsize)


class Another(Linear):
    """As an adapter or an 8-bit linear is: not the plain one."""
