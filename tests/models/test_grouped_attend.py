"""Rows in groups mix as rows all together do."""

import pytest
import torch

from danlu.models.attend import PackedAttend
from danlu.models.grouped_attend import GroupedAttend, groups_of
from danlu.models.product import Rule

pytestmark = pytest.mark.usefixtures("one_thread")


def test_long_rows_stand_alone_and_short_ones_of_like_length_together() -> None:
    assert groups_of([90, 64, 60, 50, 45, 20, 19, 2]) == [
        range(1), range(1, 2), range(2, 5), range(5, 7), range(7, 8),
    ]  # fmt: skip
    assert groups_of([20] * 60) == [range(25), range(25, 50), range(50, 60)]
    assert groups_of([1, 40]) == [range(1), range(1, 2)]


@pytest.mark.parametrize("lengths", [[70, 66, 30, 28, 3], [3, 30, 70, 28], [5], [6, 6]])
@pytest.mark.parametrize("rule", [Rule(causal=False, scale=0.5), Rule(scale=0.5), Rule(causal=False, window=9)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_mix_is_that_of_all_rows_packed_together(lengths: list[int], rule: Rule, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    total, longest = sum(lengths), max(lengths)
    q = torch.randn(total, 4, 8, generator=generator)
    k, v = (torch.randn(total, 2, 8, generator=generator) for _ in range(2))
    bias = torch.randn(4, longest, longest, generator=generator) if has_bias else None
    expected = PackedAttend(lengths)(0, q, k, v, rule, bias)
    torch.testing.assert_close(GroupedAttend(lengths)(0, q, k, v, rule, bias), expected, atol=1e-5, rtol=1e-5)
