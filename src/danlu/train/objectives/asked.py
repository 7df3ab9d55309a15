"""Rows as a network sees them and what it is asked about them; how loud it is wrong, summed.

A sequence becomes one ``Asked`` by a pure function of its ids and a generator that is seeded by (seed, step, place in
the batch): a step asks the same, however it is spread over ranks and micro-batches, and other tokens the next time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from danlu.data.loader import TokenLoader, TokenRows
from danlu.models.attend import PackedAttend, row_positions
from danlu.models.network import EncoderDecoder, Network
from danlu.train.losses.linear_head import head_loss
from danlu.train.objectives.masked import Ids
from danlu.train.step import Summed


@dataclass(frozen=True, eq=False)
class Asked:
    """Rows laid end to end, and the tokens to tell."""

    ids: Ids
    """(N,) what the network, or the decoder, reads."""
    lengths: tuple[int, ...]
    """Tokens of each row."""
    places: Ids
    """(M,) where in ids it is asked."""
    targets: Ids
    """(M,) what is right."""
    source: Ids | None = None
    """(S,) what the encoder reads, rows end to end."""
    source_lengths: tuple[int, ...] = ()
    """Tokens of each row of the source."""

    @property
    def num_tokens(self) -> int:
        """Tokens that go through a network."""
        return self.ids.size + (0 if self.source is None else self.source.size)


Ask = Callable[[TokenRows, np.random.Generator], Asked]
"""Makes a question of a sequence."""


class AskedBatches:
    """The batches of a loader as questions. See ``danlu.train.batches.Batches``."""

    def __init__(self, loader: TokenLoader, ask: Ask, *, seed: int, tokens_per_step: int) -> None:
        self._loader, self._ask, self._seed = loader, ask, seed
        self.per_epoch = loader.per_epoch
        """Steps in which every token is seen about once."""
        self.tokens_per_step = tokens_per_step
        """Tokens of a step, about."""

    def at(self, step: int, rank: int = 0, world_size: int = 1) -> list[list[Asked]]:
        """Micro-batches of one rank in step ``step`` (from 0)."""
        parts: list[list[Asked]] = []
        place = rank
        for sequences in self._loader.at(step, rank, world_size):
            parts.append([])
            for rows in sequences:
                parts[-1].append(self._ask(rows, np.random.default_rng([self._seed, step, place])))
                place += world_size
        return parts


def next_tokens(rows: TokenRows, separator: int | None = None, *, first_goes_on: bool = False) -> Asked:
    """Every token from those before it in its row; the last one is only told, never read.

    With ``separator`` rows are documents, and each is asked for its first token too: the separator stands before it, as
    it will when a text is begun. ``first_goes_on``: the first row is the rest of a document.
    """
    lengths = rows.lengths
    starts = (np.cumsum(lengths) - lengths).astype(np.int64)
    before = np.concatenate([rows.ids[:1], rows.ids[:-1]])
    asked = np.ones(rows.ids.size, bool)
    if separator is None:
        asked[starts] = False
    else:
        before[starts] = separator
        asked[starts[:1]] = not first_goes_on
    ids = before[asked]
    kept = np.add.reduceat(asked, starts, dtype=np.int64)
    return Asked(ids, tuple(kept[kept > 0].tolist()), np.arange(ids.size), rows.ids[asked])


def join(parts: Sequence[Asked]) -> Asked:
    """Several questions as one batch."""
    if len(parts) == 1:
        return parts[0]
    offsets = np.cumsum([0, *(part.ids.size for part in parts[:-1])])
    sources = [part.source for part in parts if part.source is not None]
    return Asked(
        np.concatenate([part.ids for part in parts]),
        tuple(length for part in parts for length in part.lengths),
        np.concatenate([part.places + offset for part, offset in zip(parts, offsets, strict=True)]),
        np.concatenate([part.targets for part in parts]),
        np.concatenate(sources) if sources else None,
        tuple(length for part in parts for length in part.source_lengths),
    )


def summed_loss(network: Network, asked: Asked, *, z_weight: float = 0.0) -> Summed:
    """Cross-entropy in nats, summed over all that is asked, z-loss included and told apart as ``z_loss``."""
    device = network.device
    if not asked.ids.size:
        return Summed(torch.zeros((), device=device), 0, 0)
    memory = None
    if isinstance(network, EncoderDecoder):
        assert asked.source is not None, "an encoder-decoder needs something to read"
        memory = network.encode(_tensor(asked.source, device), asked.source_lengths)
    attend = PackedAttend(asked.lengths, device, memory=memory)
    hidden = network(_tensor(asked.ids, device), row_positions(asked.lengths).to(device), attend)  # (N, D)
    if asked.places.size != asked.ids.size:
        hidden = hidden.index_select(0, _tensor(asked.places, device))  # (M, D)
    total, z = head_loss(network, hidden, _tensor(asked.targets, device), z_weight=z_weight)
    return Summed(total, asked.targets.size, asked.num_tokens, {"z_loss": z} if z_weight else {})


def _tensor(ids: Ids, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(ids, np.int64)).to(device)
