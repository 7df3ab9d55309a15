from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from danlu.models.grouped import GroupedLinear, group_items
from danlu.models.quant import Int8Embedding, Int8GroupedLinear, Int8Linear, quantize_rows


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def int8(weight: torch.Tensor) -> Int8Linear:
    return Int8Linear(*quantize_rows(weight))


def test_rounding_is_never_off_by_more_than_half_a_step() -> None:
    weight = random(40, 64) * torch.logspace(-6, 6, 40).unsqueeze(1)
    quantized, scale = quantize_rows(weight)
    assert quantized.dtype == torch.int8
    assert ((quantized * scale - weight).abs() <= 0.5001 * scale).all()
    assert (quantized.abs().amax(dim=1) == 127).all()


def test_rows_of_zeros_stay_zeros() -> None:
    quantized, scale = quantize_rows(torch.zeros(3, 8))
    assert not quantized.any()
    assert torch.isfinite(scale).all()
    out = int8(torch.cat([torch.zeros(16, 16), random(16, 16)]))(torch.zeros(4, 16))
    assert out.abs().max() < 1e-9


@given(st.integers(0, 1000), st.sampled_from([16, 32, 96]), st.sampled_from([1, 3, 17, 40]))
def test_the_product_is_within_the_bound_of_rounding(seed: int, width: int, rows: int) -> None:
    """Each of the two factors is off by half a step at most: |y - xW| ≤ ½ (s_x |W|₁ + s_w |x|₁) + ¼ D s_x s_w."""
    weight, x = random(24, width, seed=seed), 3.0 * random(rows, width, seed=seed + 1)
    step_x = x.abs().amax(dim=1, keepdim=True) / 127
    step_w = weight.abs().amax(dim=1).unsqueeze(0) / 127
    bound = 0.5 * (step_x * weight.abs().sum(dim=1) + step_w * x.abs().sum(dim=1, keepdim=True))
    bound = bound + 0.25 * width * step_x * step_w
    assert ((int8(weight)(x) - x @ weight.t()).abs() <= 1.001 * bound + 1e-6).all()


@pytest.mark.parametrize("lowest", [-128, 0, -200], ids=["around-zero", "positive", "mostly-negative"])
def test_activations_that_are_whole_steps_lose_nothing(lowest: int) -> None:
    """256 steps between the lowest and the highest value of a token: here exactly the numbers it holds."""
    x = torch.randint(256, (9, 48), generator=torch.Generator().manual_seed(1)) + lowest
    x[:, 0], x[:, 1] = lowest, lowest + 255
    weight, scale = quantize_rows(random(32, 48))
    expected = (x @ weight.t().to(torch.int64)).double() * scale.t().double()
    found = Int8Linear(weight, scale)(x.float()).double()
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    layer = int8(random(64, 96))
    x = random(50, 96, seed=2).to(dtype) * torch.logspace(-3, 3, 50).unsqueeze(1).to(dtype)
    together = layer(x)
    assert together.dtype == dtype
    assert torch.equal(together, torch.cat([layer(row) for row in x.split(1)]))
    assert torch.equal(together[10:27], layer(x[10:27]))


def test_an_embedding_row_is_its_integers_times_both_scales() -> None:
    table = random(10, 8)
    weight, scale = quantize_rows(table)
    columns = torch.rand(8) + 0.5
    ids = torch.tensor([3, 3, 9])
    looked_up = Int8Embedding(weight, scale, columns, torch.float32)(ids)
    torch.testing.assert_close(looked_up, weight[ids].float() * scale[ids] * columns)
    assert Int8Embedding(weight, scale, columns, torch.bfloat16)(ids).dtype == torch.bfloat16


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_goes_in_gets_the_gradient_of_the_plain_product(dtype: torch.dtype) -> None:
    layer = int8(random(600, 300))
    x = random(7, 300, seed=3).to(dtype).requires_grad_()
    gradient = random(7, 600, seed=4).to(dtype)
    y = layer(x)
    assert torch.equal(y, layer(x.detach()))
    y.backward(gradient)
    expected = gradient.float() @ layer.plain_rows(0, 600)
    assert x.grad is not None
    assert x.grad.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 0.02 * float(expected.abs().max())
    torch.testing.assert_close(x.grad.float(), expected, atol=tolerance, rtol=1e-4)


def test_experts_get_the_gradients_of_their_plain_products() -> None:
    plain = GroupedLinear(3, 40, (9, 9))
    layer = Int8GroupedLinear(*quantize_rows(plain.weight.detach()), None, plain.parts)
    groups = group_items(torch.tensor([2, 0, 2, 2, 0]), 3)
    x = random(5, 40).requires_grad_()
    y = layer(x, groups)
    assert torch.equal(y, layer(x.detach(), groups))
    gradient = random(5, 18, seed=1)
    y.backward(gradient)
    assert x.grad is not None
    for group, row, found in zip(groups.owner.tolist(), gradient, x.grad, strict=True):
        torch.testing.assert_close(found, row @ (layer.weight[group] * layer.scale[group]))


def test_backward_never_holds_the_plain_weight() -> None:
    """Of 4 MiB in 8 bits, 16 in plain numbers: what is allocated on the way back stays far below."""
    layer = int8(random(2048, 2048))
    x = random(2, 2048).requires_grad_()
    y = layer(x)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.is_floating_point():
                largest = max(largest, out.numel())
            return out

    with Watch():
        y.backward(torch.ones_like(y))
    assert 0 < largest <= 2048 * 256
