"""An endless stream of token sequences from shards: shuffled, mixed, shared among ranks, entered anywhere.

Which tokens sequence number n has is a function of the shards, the config and the seed, computed when asked for: no
order is stored, no worker runs, and going on is knowing n. Ranks take every world_size-th sequence of a batch, so a run
may go on with more or fewer of them and no sequence comes twice or never. Knows nothing of models, tensors or losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from danlu.core.config import to_mapping
from danlu.core.errors import ConfigError, DataError
from danlu.core.files import sha256_json
from danlu.data.mixture import Mixture
from danlu.data.sequences import ChunkedSequences, PackedSequences, Sequences
from danlu.data.shards import Integers, TokenShards

Documents = Literal["packed", "chunked", "joined"]


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """What a sequence is, and how many make a batch."""

    sequence_length: int = 512
    """Tokens of a sequence (packed: at most)."""
    sequences_per_batch: int = 16
    """Sequences of a batch, over all ranks."""
    documents: Documents = "packed"
    """packed: whole documents, best-fit, longer ones cut; chunked: the documents end to end, cut into equal sequences
    of which each document's piece is a row; joined: the same, each sequence one row."""
    is_shuffled: bool = True
    """Whether each epoch has an order of its own; else all have one, near the order of the shards."""

    def __post_init__(self) -> None:
        if self.sequence_length < 2:
            raise ConfigError(f"sequence_length is {self.sequence_length}.", "Use 2 or more: one token predicts none.")
        if self.sequences_per_batch < 1:
            raise ConfigError(f"sequences_per_batch is {self.sequences_per_batch}.", "Use 1 or more.")


@dataclass(frozen=True, kw_only=True)
class TokenSource:
    """Shards, and how much of what is read comes from them."""

    shards: TokenShards
    """Where the tokens are."""
    weight: float | None = None
    """Share of the sequences, in proportion to the other sources; None for all: as many tokens as each has."""


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Rows of tokens laid end to end: one sequence, or the sequences of a batch."""

    ids: npt.NDArray[np.int64]
    """(N,) token ids."""
    lengths: Integers
    """(R,) tokens of each row; rows should not see each other. They sum to N."""


def lay_end_to_end(sequences: Sequence[TokenRows]) -> TokenRows:
    """The rows of several sequences as one."""
    if not sequences:
        return TokenRows(np.empty(0, np.int64), np.empty(0, np.int64))
    return TokenRows(np.concatenate([s.ids for s in sequences]), np.concatenate([s.lengths for s in sequences]))


class TokenLoader:
    """Batches of one rank, endlessly: iterate, or ask for any step with ``at``."""

    def __init__(
        self,
        sources: Sequence[TokenSource],
        config: LoaderConfig,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        micro_tokens: int | None = None,
    ) -> None:
        """``micro_tokens`` is the most tokens of a micro-batch of ``at`` (one sequence at least)."""
        assert 0 <= rank < world_size
        if config.sequences_per_batch < world_size:
            raise ConfigError(
                f"sequences_per_batch is {config.sequences_per_batch}, with {world_size} ranks.",
                f"Use {world_size} or more: each rank needs a sequence.",
            )
        self._config, self._rank, self._world_size = config, rank, world_size
        self._micro_sequences = (
            None if micro_tokens is None else max(1, micro_tokens // config.sequence_length)
        )  # sequences a micro-batch
        weights = _weights(sources)
        self._sources = [_sequences(source.shards, config, seed, n) for n, source in enumerate(sources)]
        self._mixture = Mixture(weights)
        self._position = 0
        self._fingerprint = sha256_json(
            {
                "sources": [to_mapping(source.shards.index) for source in sources],
                "weights": weights,
                "order": [seed, config.sequence_length, config.documents, config.is_shuffled],
            }
        )
        per_epoch = sum(source.per_epoch() for source in self._sources)
        self.per_epoch = -(-per_epoch // config.sequences_per_batch)
        """Batches in which as many sequences come as all sources have together."""

    def __iter__(self) -> Iterator[TokenRows]:
        """This rank's rows of one batch after another, from the saved position on; never ends."""
        while True:
            first = self._position
            self._position += self._config.sequences_per_batch
            mine = range(first + self._rank, self._position, self._world_size)
            yield lay_end_to_end([self._sequence(number) for number in mine])

    def at(self, step: int, rank: int = 0, world_size: int = 1) -> list[list[TokenRows]]:
        """Micro-batches of one rank in batch ``step`` (from 0), each a list of sequences."""
        first = step * self._config.sequences_per_batch
        mine = range(first + rank, first + self._config.sequences_per_batch, world_size)
        sequences = [self._sequence(number) for number in mine]
        size = self._micro_sequences or max(1, len(sequences))
        return [sequences[start : start + size] for start in range(0, len(sequences), size)]

    def state(self) -> dict[str, Any]:
        """Where the next batch begins, as small JSON values; the same on every rank."""
        places = [source.bookmark() for source in self._sources]
        return {"sequence": self._position, "data": self._fingerprint, "places": places}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken, at any number of ranks and any batch size. ConfigError for other data."""
        position, places = state.get("sequence"), state.get("places")
        if not isinstance(position, int) or position < 0 or not isinstance(places, list):
            raise ConfigError("The saved position of the data is damaged.", "Start again, or from another checkpoint.")
        if state.get("data") != self._fingerprint or len(places) != len(self._sources):
            raise ConfigError(
                "The saved position belongs to other shards, weights, seed or sequence length.",
                "Go on with the same data settings, or start a new run.",
            )
        for source, place in zip(self._sources, places, strict=True):
            source.open_at(place)
        self._position = position

    def _sequence(self, number: int) -> TokenRows:
        """Sequence ``number`` of the mixture."""
        source, inside = self._mixture.locate(number)
        sequences = self._sources[source]
        spans, lengths = sequences.at(inside)
        parts = [sequences.shards.tokens(start, stop) for start, stop in spans]
        ids = parts[0].astype(np.int64) if len(parts) == 1 else np.concatenate(parts, dtype=np.int64)
        sequences.shards.check_ids(ids)
        return TokenRows(ids, lengths)


def _sequences(shards: TokenShards, config: LoaderConfig, seed: int, number: int) -> Sequences:
    """The sequences of one source; each source shuffles by a seed of its own."""
    if config.documents == "packed":
        return PackedSequences(shards, config.sequence_length, (seed, number), config.is_shuffled)
    is_joined = config.documents == "joined"
    return ChunkedSequences(shards, config.sequence_length, (seed, number), config.is_shuffled, is_joined)


def _weights(sources: Sequence[TokenSource]) -> list[float]:
    """A share for each source; they sum to 1."""
    if not sources:
        raise ConfigError("There is no source of tokens.", "Give one folder of token shards at least.")
    given = [source.weight for source in sources if source.weight is not None]
    if given and len(given) < len(sources):
        raise ConfigError(
            f"{len(given)} of {len(sources)} sources have a weight.", "Give each source a weight, or none."
        )
    if len({source.shards.index.tokenizer_sha256 for source in sources}) > 1:
        raise DataError("The sources were made by different tokenizers.", "Tokenize all of them with one.")
    weights = given or [float(source.shards.num_tokens) for source in sources]
    if any(not 0 < weight < float("inf") for weight in weights):
        shown = ", ".join(f"{weight:g}" for weight in weights)
        raise ConfigError(f"The sources' weights are {shown}.", "Use positive numbers, and sources with tokens.")
    return [weight / sum(weights) for weight in weights]
