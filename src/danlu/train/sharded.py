"""Tensors spread by rows over processes (DTensors of FSDP2) beside plain ones. Knows no optimiser and no network.

Every function takes plain tensors too and gives them back as they are, so callers need not ask.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process has only some rows."""
    return isinstance(tensor, DTensor)


def mine(tensor: Tensor) -> Tensor:
    """The rows of this process, in the same memory: (all rows, …) → (rows, …)."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All rows, on every process; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def rows_of(tensor: Tensor) -> tuple[int, int]:
    """The first row of this process and how many it has; 0 and all for a plain tensor that is no single number."""
    if not isinstance(tensor, DTensor):
        return 0, tensor.shape[0] if tensor.ndim else 1
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return (offset[0], shape[0]) if shape[0] else (tensor.shape[0], 0)


def of_rows(rows: Tensor, other: Tensor) -> Tensor:
    """``rows`` of this process as a tensor spread as ``other`` is, with ``other``'s number of rows; nothing travels."""
    if not isinstance(other, DTensor):
        return rows
    shape = torch.Size([other.shape[0], *rows.shape[1:]])
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(rows, other.device_mesh, other.placements, run_check=False, shape=shape, stride=stride)


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor spread as ``other`` is; nothing travels, for every process has it."""
    if isinstance(tensor, DTensor) or not isinstance(other, DTensor):
        return tensor
    assert other.placements == (Shard(0),), "rows are spread, once"
    start, count = rows_of(other)
    return of_rows(tensor[start : start + count], other)


def zeros(shape: tuple[int, ...], other: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros on ``other``'s device, spread as it is; ``shape`` is of the whole and begins with ``other``'s rows."""
    count = rows_of(other)[1] if shape else 0
    rows = torch.zeros((count, *shape[1:]) if shape else (), dtype=dtype, device=mine(other).device)
    return of_rows(rows, cast(Tensor, other)) if shape else rows
