"""Norms against torch's own, in both number types."""

from __future__ import annotations

import pytest
import torch

from danlu.models import norms
from danlu.models.norms import NormConfig, RMSNorm


def reference(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Zhang & Sennrich 2019, equation 4, in fp64."""
    x = x.double()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight.double()


@pytest.mark.parametrize("shape", [(1, 32), (7, 32), (3, 5, 32)], ids=str)
def test_rms_norm_in_fp32_is_the_formula(shape: tuple[int, ...]) -> None:
    norm = RMSNorm(32, 1e-5)
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(norm(x).double(), reference(x, norm.weight, 1e-5), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("requires_grad", [True, False])
def test_rms_norm_in_bf16_is_the_formula_rounded_once(requires_grad: bool) -> None:
    norm = RMSNorm(64, 1e-5).bfloat16().requires_grad_(requires_grad)
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    x = torch.randn(9, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    expected = reference(x, norm.weight, 1e-5)
    assert norm(x).dtype == torch.bfloat16
    expected = expected.detach()
    rounded = (norm(x).detach().double() - expected).abs() / expected.abs()
    assert float(rounded.max()) <= 2**-8  # half a step of eight bits, whichever way the tie falls


@pytest.mark.parametrize("at_once", [1 << 18, 128])
def test_gradients_in_bf16_are_those_of_the_formula(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "_AT_ONCE", at_once)
    norm = RMSNorm(64, 1e-5).bfloat16()
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    x = torch.randn(3, 9, 64, generator=torch.Generator().manual_seed(2)).bfloat16().requires_grad_()
    wanted = torch.randn(3, 9, 64, generator=torch.Generator().manual_seed(3)).bfloat16()
    norm(x).backward(wanted)
    wide, weight = x.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    reference(wide, weight, 1e-5).backward(wanted.double())
    assert x.grad is not None
    assert norm.weight.grad is not None
    assert wide.grad is not None
    assert weight.grad is not None
    torch.testing.assert_close(x.grad.double(), wide.grad, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(norm.weight.grad.double(), weight.grad, atol=3e-2, rtol=1e-2)


def test_a_frozen_weight_gets_no_gradient_in_bf16() -> None:
    norm = RMSNorm(8, 1e-5).bfloat16().requires_grad_(False)
    x = torch.randn(2, 8).bfloat16().requires_grad_()
    norm(x).sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_a_unit_offset_a_weight_of_zero_changes_nothing(dtype: torch.dtype) -> None:
    plain = RMSNorm(16, 1e-6).to(dtype)
    offset = RMSNorm(16, 1e-6, unit_offset=True).to(dtype)
    x = torch.randn(4, 16).to(dtype)
    assert torch.equal(plain(x), offset(x))


def test_a_config_makes_the_norm_it_names() -> None:
    assert isinstance(NormConfig(kind="rms").make(8), RMSNorm)
    layer = NormConfig(kind="layer", bias=True, epsilon=1e-3).make(8)
    assert isinstance(layer, torch.nn.LayerNorm)
    assert layer.bias is not None
    assert layer.eps == 1e-3
    bare = NormConfig(kind="layer").make(8)
    assert isinstance(bare, torch.nn.LayerNorm)
    assert bare.bias is None
