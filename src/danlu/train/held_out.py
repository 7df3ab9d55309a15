"""How well a language model tells held-out documents: nats a token, perplexity, and bits per byte.

Bits per byte do not depend on the tokenizer, so models with different ones, n-grams and compressors can be compared.
Every token of a document is told, the first one from the separator; a document longer than the model's rows is read in
windows that overlap by half, so no token but the first ones is told from less than half a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from danlu.data.shards import TokenShards
from danlu.models.network import Network
from danlu.train.objectives.asked import Asked, join, summed_loss
from danlu.train.objectives.masked import Ids

_BATCH_ROWS = 8
"""Rows of full length that are read at once."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What a model said of documents it has not seen."""

    nats: float
    """Negative log-likelihood of all tokens."""
    tokens: int
    """Tokens told, separators included."""
    text_bytes: float
    """UTF-8 bytes of the documents; 0 when not known. Of some of the shards' documents: their share by tokens."""
    documents: int
    """How many."""

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """e to the loss."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float | None:
        """Bits that a compressor with this model needs for a byte of text; None when bytes are not known."""
        return self.nats / math.log(2) / self.text_bytes if self.text_bytes else None


@torch.no_grad()
def held_out(
    network: Network, shards: TokenShards, *, row_tokens: int, separator: int | None, max_documents: int | None = None
) -> HeldOut:
    """Read documents of ``shards`` in rows of at most ``row_tokens``: all, or so many, evenly spread.

    ``separator`` stands before documents; None where they begin with a token of their own, which is then not told.
    """
    wanted = shards.num_documents if max_documents is None else min(max_documents, shards.num_documents)
    assert wanted > 0, "no documents"
    numbers = [place * shards.num_documents // wanted for place in range(wanted)]
    windows = [part for number in numbers for part in _windows(shards, number, row_tokens, separator)]
    windows.sort(key=lambda part: part.ids.size)
    nats, tokens = 0.0, 0
    for batch in _batches(windows, _BATCH_ROWS * row_tokens):
        nats += float(summed_loss(network, batch).total)
        tokens += batch.targets.size
    starts, stops = shards.spans(np.array(numbers))
    share = int((stops - starts).sum()) / shards.num_tokens
    return HeldOut(nats=nats, tokens=tokens, text_bytes=shards.index.text_bytes * share, documents=wanted)


def _windows(shards: TokenShards, number: int, row_tokens: int, separator: int | None) -> Iterator[Asked]:
    """One document; in every window but the first only the second half is asked for."""
    ids = shards.document(number).astype(np.int64)
    targets: Ids = ids if separator is not None else ids[1:]
    before = np.concatenate([[separator], ids[:-1]]) if separator is not None else ids[:-1]
    step = max(1, row_tokens // 2)
    told = 0
    start = 0
    while told < targets.size:
        stop = min(start + row_tokens, targets.size)
        places = np.arange(told - start, stop - start)
        yield Asked(before[start:stop].astype(np.int64), (stop - start,), places, targets[told:stop])
        told = stop
        start = stop - step if stop < targets.size else stop


def _batches(windows: list[Asked], budget: int) -> Iterator[Asked]:
    """Neighbours joined, so many that their tokens fit."""
    batch: list[Asked] = []
    size = 0
    for window in windows:
        if batch and size + window.ids.size > budget:
            yield join(batch)
            batch, size = [], 0
        batch.append(window)
        size += window.ids.size
    if batch:
        yield join(batch)
