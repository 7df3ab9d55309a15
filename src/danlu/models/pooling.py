"""One vector a row out of the hidden states of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["first", "mean", "last"]
"""first: the [CLS] of encoders; mean: of all tokens; last: what a causal stack knows at the end."""


def pool(hidden: Tensor, lengths: Sequence[int], how: Pooling) -> Tensor:
    """hidden: (N, D), rows of ``lengths`` laid end to end → (B, D). The mean is taken in fp32."""
    counts = torch.tensor(lengths, device=hidden.device)
    ends = counts.cumsum(0)
    if how == "first":
        return hidden.index_select(0, ends - counts)
    if how == "last":
        return hidden.index_select(0, ends - 1)
    rows = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), counts)
    sums = torch.zeros(len(lengths), hidden.shape[1], device=hidden.device).index_add(0, rows, hidden.float())
    return (sums / counts.unsqueeze(1)).to(hidden.dtype)
