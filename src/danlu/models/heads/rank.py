"""The ranking head: which items should come next for a row of items (recommendation).

A row's last hidden state is compared with the item table, as in SASRec (Kang & McAuley 2018). Deviation: no negative
samples are needed, all items are scored at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from danlu.core.errors import ModelError, RequestError
from danlu.models.linear import Linear
from danlu.models.pooling import Pooling, pool


@dataclass(frozen=True, kw_only=True)
class RankConfig:
    """How a row of items becomes a score for every item."""

    vocabulary_size: int
    """V: rows of the item table."""
    tied: bool = True
    """Whether items are scored with the embedding they came in by."""
    bias: bool = False
    """Whether scores shift, by how popular an item is."""
    pooling: Pooling = "last"
    """Which place of the row speaks for it."""
    reserved: int = 1
    """The first ids of the table are no items (padding, mask) and never ranked."""

    def __post_init__(self) -> None:
        if not 0 <= self.reserved < self.vocabulary_size:
            raise ModelError(
                f"Model config: {self.reserved} of {self.vocabulary_size} item ids are reserved.",
                "At least one must be left for items.",
            )

    def make(self, width: int) -> RankHead:
        """The head of a stack of ``width``."""
        return RankHead(self, width)


class RankHead(nn.Module):
    """Pool, then one product with the item table."""

    def __init__(self, config: RankConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.linear = Linear(width, config.vocabulary_size, bias=config.bias)

    def forward(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """hidden: (N, D), rows of ``lengths`` laid end to end → scores of all items (B, V), reserved ids at -inf."""
        return self.scores(pool(hidden, lengths, self.config.pooling))

    def scores(self, states: Tensor) -> Tensor:
        """What should come next after each of states (M, D): scores of all items (M, V), reserved ids at -inf."""
        scores = self.linear(states)
        return scores.masked_fill(
            torch.arange(scores.shape[1], device=scores.device) < self.config.reserved, -torch.inf
        )


def top_items(scores: Tensor, count: int, seen: Sequence[Sequence[int]] | None = None) -> tuple[Tensor, Tensor]:
    """The best ``count`` items of each row without those in ``seen``: scores (B, V) → ids and scores (B, count).

    Equal scores are ordered by id. Raises RequestError when a row has fewer items left.
    """
    open_scores = scores.clone()
    for row, items in enumerate(seen or ()):
        open_scores[row, list(items)] = -torch.inf
    left = int((open_scores > -torch.inf).sum(dim=1).min())
    if count > left:
        raise RequestError(f"{count} items were asked for, {left} are left.", "Ask for fewer, or mark fewer as seen.")
    values, ids = open_scores.sort(dim=1, descending=True, stable=True)
    return ids[:, :count], values[:, :count]


plugin = RankConfig
