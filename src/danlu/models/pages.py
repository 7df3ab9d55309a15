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


def empty_pages(shape: Sequence[int], dtype: torch.dtype, *, is_zero: bool = False) -> Tensor:
    """A tensor on the CPU with pages of its own when it is large; its values are not set, or 0 with ``is_zero``.

    Large ones take no memory before something is written. Raises MemoryError.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < _LARGE_BYTES:
        return (torch.zeros if is_zero else torch.empty)(*shape, dtype=dtype)
    try:
        pages = mmap.mmap(-1, size)
    except OSError as error:  # what a limit of the process or of the system looks like here
        raise MemoryError(f"no memory for {size} bytes") from error
    return torch.frombuffer(pages, dtype=dtype).view(*shape)
