"""Memory for large tensors that goes back to the system as soon as they are let go.

The C allocator keeps what is freed between tensors that stay, so that loading a model, with tensors passing through,
would end up holding several times its size.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

_LARGE_BYTES = 1 << 18


def empty_pages(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor on the CPU with pages of its own when it is large; its values are not set."""
    size = math.prod(shape) * dtype.itemsize
    if size < _LARGE_BYTES:
        return torch.empty(*shape, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, size), dtype=dtype).view(*shape)
