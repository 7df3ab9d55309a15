"""Products over groups of rows, against one product a row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from danlu.models.grouped import GroupedLinear, group_items, grouped_product
from danlu.models.quant import Int8GroupedLinear, Int8Linear, quantize_rows


def _items(num_groups: int, count: int, seed: int = 0) -> Tensor:
    return torch.randint(num_groups, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 7, 100, 1000])
def test_every_item_stands_in_a_row_of_its_own_group(count: int) -> None:
    owner = _items(5, count)
    groups = group_items(owner, 5)
    assert torch.equal(groups.source[groups.place], torch.arange(count))
    assert torch.equal(groups.owner[groups.place], owner)
    assert torch.equal(owner[groups.source], groups.owner)  # copies too are of the group that they fill up
    assert sum(groups.sizes) == len(groups.source) == groups.ends[-1]


def test_equal_groups_keep_the_order_of_their_items() -> None:
    groups = group_items(torch.tensor([1, 0, 1, 0, 1]), 2)
    assert groups.source.tolist() == [1, 3, 0, 2, 4]


def test_sizes_are_rounded_up_by_an_eighth_at_most_so_that_few_kernels_are_compiled() -> None:
    sizes = [group_items(torch.zeros(count, dtype=torch.long), 1).sizes[0] for count in range(1, 400)]
    assert all(count <= size <= count * 1.125 for count, size in enumerate(sizes, start=1))
    assert sizes[:16] == list(range(1, 17))
    assert len(set(sizes)) < 60


def test_items_of_no_group_get_no_row() -> None:
    groups = group_items(torch.tensor([2, 0, 2, 1]), 2)
    assert groups.sizes == (1, 1)
    assert groups.source.tolist() == [1, 3]
    assert groups.place.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_meet_the_weights_of_their_group_and_gradients_are_those_of_indexing(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    groups = group_items(_items(6, 40), 8)  # groups 6 and 7 stay empty
    x = torch.randn(len(groups.source), 12, dtype=dtype, requires_grad=True)
    weight = torch.randn(8, 10, 12, dtype=dtype, requires_grad=True)
    kick = torch.randn(len(groups.source), 10, dtype=dtype)
    grouped_product(x, weight, groups).mul(kick).sum().backward()
    twin_x, twin_weight = (t.detach().double().requires_grad_() for t in (x, weight))
    expected = torch.einsum("sd,sod->so", twin_x, twin_weight[groups.owner])
    expected.mul(kick).sum().backward()
    rtol, atol = (1e-4, 1e-4) if dtype == torch.float32 else (0.05, 0.1)
    torch.testing.assert_close(grouped_product(x, weight, groups).double(), expected, rtol=rtol, atol=atol)
    assert x.grad is not None
    assert weight.grad is not None
    torch.testing.assert_close(x.grad.double(), twin_x.grad, rtol=rtol, atol=atol)
    torch.testing.assert_close(weight.grad.double(), twin_weight.grad, rtol=rtol, atol=atol)
    assert not weight.grad[6:].any()


def test_a_bias_is_that_of_the_group() -> None:
    torch.manual_seed(0)
    linear = GroupedLinear(3, 4, (5,), bias=True)
    groups = group_items(torch.tensor([2, 0, 2]), 3)
    x = torch.randn(3, 4)
    expected = [nn(row) for nn, row in zip((_single(linear, g) for g in (0, 2, 2)), x, strict=True)]
    torch.testing.assert_close(linear(x, groups), torch.stack(expected))


def _single(linear: GroupedLinear, group: int) -> torch.nn.Linear:
    plain = torch.nn.Linear(linear.weight.shape[2], linear.weight.shape[1])
    assert linear.bias is not None
    plain.load_state_dict({"weight": linear.weight[group], "bias": linear.bias[group]})
    return plain


def test_eight_bits_give_each_row_what_the_8_bit_linear_of_its_group_gives() -> None:
    torch.manual_seed(0)
    linear = GroupedLinear(4, 16, (6, 6), bias=True).requires_grad_(False)
    weight, scale = quantize_rows(linear.weight)
    layer = Int8GroupedLinear(weight, scale, linear.bias, linear.parts)
    groups = group_items(_items(4, 30), 4)
    x = torch.randn(len(groups.source), 16)
    expected = [
        Int8Linear(weight[g], scale[g])(row.unsqueeze(0))[0] + layer.bias[g]  # pyright: ignore[reportOptionalSubscript]
        for g, row in zip(groups.owner.tolist(), x, strict=True)
    ]
    torch.testing.assert_close(layer(x, groups), torch.stack(expected), rtol=1e-5, atol=1e-6)
    assert layer.parts == (6, 6)
