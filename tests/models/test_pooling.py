"""Pooling by hand."""

import torch

from danlu.models.pooling import pool

HIDDEN = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0], [7.0, 7.0]])


def test_rows_are_pooled_where_they_lie() -> None:
    assert pool(HIDDEN, [3, 1], "first").tolist() == [[1.0, 2.0], [7.0, 7.0]]
    assert pool(HIDDEN, [3, 1], "last").tolist() == [[5.0, 9.0], [7.0, 7.0]]
    assert pool(HIDDEN, [3, 1], "mean").tolist() == [[3.0, 5.0], [7.0, 7.0]]


def test_means_of_long_rows_are_exact_in_bf16() -> None:
    assert pool(torch.ones(1001, 1, dtype=torch.bfloat16), [1001], "mean").item() == 1.0
