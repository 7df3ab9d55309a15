"""Next-token loss on packed batches: summed over supervised tokens, so any split of a batch gives the same mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from danlu.models.attention import PackedAttend, row_positions
from danlu.models.heads.lm import Decoder
from danlu.text.chat import RenderedChat


@dataclass(frozen=True)
class PackedBatch:
    """Rows laid end to end. ``predicts`` are the positions whose next token is supervised, ``targets`` those tokens."""

    ids: Tensor
    """(N,) token ids."""
    lengths: tuple[int, ...]
    """Tokens of each row; they add up to N."""
    predicts: Tensor
    """(M,) positions in ids."""
    targets: Tensor
    """(M,) token ids to predict there."""

    @property
    def num_tokens(self) -> int:
        """All tokens, N."""
        return int(self.ids.shape[0])


def collate(rows: Sequence[RenderedChat]) -> PackedBatch:
    """Lay rows end to end. The shift by one happens here, inside each row, and nowhere else."""
    ids = [i for row in rows for i in row.ids]
    predicts: list[int] = []
    start = 0
    for row in rows:
        predicts += [start + i - 1 for i, learnt in enumerate(row.is_answer) if learnt and i > 0]
        start += len(row.ids)
    positions = torch.tensor(predicts, dtype=torch.long)
    all_ids = torch.tensor(ids, dtype=torch.long)
    return PackedBatch(all_ids, tuple(len(row.ids) for row in rows), positions, all_ids[positions + 1])


def summed_loss(decoder: Decoder, batch: PackedBatch) -> Tensor:
    """Cross-entropy in nats, summed over the supervised tokens: a scalar to divide by their global number.

    Logits are made for supervised positions only; the head is the largest product of a small model.
    """
    device = decoder.stack.norm.weight.device
    positions = row_positions(batch.lengths).to(device)
    hidden = decoder(batch.ids.to(device), positions, PackedAttend(batch.lengths, device))  # (N, D)
    logits = decoder.logits(hidden.index_select(0, batch.predicts.to(device)))  # (M, V)
    return nn.functional.cross_entropy(logits.float(), batch.targets.to(device), reduction="sum")
