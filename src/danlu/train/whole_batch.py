"""Steps whose loss compares all rows of the batch, in the memory of one micro-batch.

Each part of the batch keeps only its vectors; the rest of its forward pass is done again when gradients come back, with
the same dropout. Result and gradients are those of the whole batch at once, which is what GradCache (Gao et al. 2021)
does with two passes of its own. Knows no loss and no data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from danlu.models.encode import packs
from danlu.train.batches import RowBatches

Item = TypeVar("Item")


class WholeBatches(Generic[Item]):
    """``RowBatches`` of which a step is never split: each has one item, the rows of this process."""

    def __init__(
        self, rows: Sequence[Item], length_of: Callable[[Item], int], *, seed: int, rows_per_step: int
    ) -> None:
        self._rows = RowBatches(rows, length_of, seed=seed, rows_per_step=rows_per_step)
        self.per_epoch = self._rows.per_epoch
        """See ``Batches``."""
        self.tokens_per_step = self._rows.tokens_per_step
        """See ``Batches``."""

    def at(self, step: int, rank: int = 0, world_size: int = 1) -> list[list[list[Item]]]:
        """See ``Batches.at``."""
        return [[rows] for rows in self._rows.at(step, rank, world_size) if rows]


def embed_in_parts(
    embed: Callable[[Sequence[Item]], Tensor],
    items: Sequence[Item],
    length_of: Callable[[Item], int],
    micro_tokens: int | None,
) -> Tensor:
    """Vectors (B, P) of items in their order, made in parts of at most ``micro_tokens`` (or one item), with gradients
    where these are on."""
    parts = packs([length_of(item) for item in items], micro_tokens) if micro_tokens else [list(range(len(items)))]
    if len(parts) == 1:
        return embed(items)
    chosen = [[items[number] for number in part] for part in parts]
    if torch.is_grad_enabled():
        again = cast("Callable[..., Tensor]", checkpoint)
        found = [again(embed, some, use_reentrant=False) for some in chosen]
    else:
        found = [embed(some) for some in chosen]
    order = torch.tensor([number for part in parts for number in part])
    return torch.cat(found).index_select(0, order.argsort().to(found[0].device))
