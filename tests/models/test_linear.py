"""Linears on other kernels say what torch's own say, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from danlu.models.linear import FusedLinear, Linear, PackedLinear, rows_of_parts
from danlu.models.multiply import can_pack, is_faster

WIDE, HIGH = 96, 160


def pair(bias: bool = True) -> tuple[Linear, nn.Linear]:
    """Ours and torch's with the same weights."""
    torch.manual_seed(3)
    ours, plain = Linear(WIDE, HIGH, bias=bias), nn.Linear(WIDE, HIGH, bias=bias)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


@pytest.mark.parametrize("shape", [(1, WIDE), (40, WIDE), (4, 10, WIDE)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_torch(shape: tuple[int, ...], bias: bool) -> None:
    ours, plain = pair(bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    wanted = torch.randn(*shape[:-1], HIGH, generator=torch.Generator().manual_seed(2))
    y, expected = ours(mine), plain(theirs)
    y.backward(wanted)
    expected.backward(wanted)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-5)
    for own, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, atol=1e-4, rtol=1e-4)


def test_only_what_is_wanted_gets_a_gradient() -> None:
    ours, _ = pair()
    ours.weight.requires_grad_(False)
    x = torch.randn(40, WIDE).requires_grad_()
    ours(x).sum().backward()
    assert ours.weight.grad is None
    assert ours.bias.grad is not None
    assert x.grad is not None


def test_small_products_and_other_types_stay_with_torch() -> None:
    assert not is_faster(torch.zeros(1, 8), torch.zeros(8, 8))
    assert not is_faster(torch.zeros(64, 512, dtype=torch.bfloat16), torch.zeros(512, 512, dtype=torch.bfloat16))
    assert not is_faster(torch.zeros(64, 512, device="meta"), torch.zeros(512, 512, device="meta"))


def test_parts_of_a_fused_linear_are_its_rows() -> None:
    assert rows_of_parts(FusedLinear(8, (4, 2, 2))) == (4, 2, 2)
    assert rows_of_parts(nn.Linear(8, 5)) == (5,)


needs_packing = pytest.mark.skipif(not can_pack(torch.zeros(1, 1)), reason="this CPU gains nothing from packing")


@needs_packing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_linear_says_the_same_and_gives_its_numbers_back(dtype: torch.dtype, bias: bool) -> None:
    _, plain = pair(bias)
    plain = plain.to(dtype).requires_grad_(False)
    packed = PackedLinear(plain)
    assert torch.equal(packed.weight, plain.weight)
    state = packed.state_dict()
    assert state.keys() == plain.state_dict().keys()
    assert all(torch.equal(state[name], weight) for name, weight in plain.state_dict().items())
    for shape in ((0, WIDE), (1, WIDE), (33, WIDE), (2, 5, WIDE)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(packed(x), plain(x), atol=tolerance, rtol=tolerance)


@needs_packing
def test_a_packed_linear_does_not_lose_a_gradient_silently() -> None:
    _, plain = pair()
    with pytest.raises(AssertionError, match="a packed linear has no gradient"):
        PackedLinear(plain)(torch.randn(2, WIDE).requires_grad_())
