"""Next-token loss on packed batches: summed over supervised tokens, so any split of a batch gives the same mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from danlu.models.attend import PackedAttend, row_positions, shared_prefix
from danlu.models.network import Network
from danlu.text.chat import RenderedChat


@dataclass(frozen=True)
class PackedBatch:
    """Rows laid end to end, after the tokens that all of them begin with.

    ``predicts`` are the positions whose next token is supervised, ``targets`` those tokens.
    """

    ids: Tensor
    """(N,) token ids."""
    shared: int
    """First tokens that all rows have in common: they stand once, at the start."""
    lengths: tuple[int, ...]
    """Tokens of each row after the shared ones; with them they add up to N."""
    predicts: Tensor
    """(M,) positions in ids."""
    targets: Tensor
    """(M,) token ids to predict there."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows, the shared ones counted in each."""
        return sum(self.lengths) + len(self.lengths) * self.shared


def collate(rows: Sequence[RenderedChat]) -> PackedBatch:
    """Lay rows end to end. The shift by one happens here, inside each row, and nowhere else."""
    supervised = [[i for i, learnt in enumerate(row.is_answer) if learnt and i > 0] for row in rows]
    first_predicted = min((places[0] - 1 for places in supervised if places), default=0)
    shared = shared_prefix([row.ids for row in rows], longest=first_predicted)
    ids, predicts, targets = rows[0].ids[:shared], list[int](), list[int]()
    for row, places in zip(rows, supervised, strict=True):
        predicts += [len(ids) + i - 1 - shared for i in places]
        targets += [row.ids[i] for i in places]
        ids = ids + row.ids[shared:]
    return PackedBatch(
        torch.tensor(ids, dtype=torch.long),
        shared,
        tuple(len(row.ids) - shared for row in rows),
        torch.tensor(predicts, dtype=torch.long),
        torch.tensor(targets, dtype=torch.long),
    )


def summed_loss(network: Network, batch: PackedBatch) -> Tensor:
    """Cross-entropy in nats, summed over the supervised tokens: a scalar to divide by their global number.

    Logits are made for supervised positions only; the head is the largest product of a small model.
    """
    device = network.device
    positions = row_positions(batch.lengths, batch.shared).to(device)
    attend = PackedAttend(batch.lengths, device, batch.shared)
    hidden = network(batch.ids.to(device), positions, attend)  # (N, D)
    logits = network.logits(hidden.index_select(0, batch.predicts.to(device)))  # (M, V)
    return nn.functional.cross_entropy(logits.float(), batch.targets.to(device), reduction="sum")
