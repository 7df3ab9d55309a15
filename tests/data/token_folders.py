"""Small folders of token shards for tests."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from danlu.data.shard_writer import ShardConfig, ShardWriter
from danlu.data.shards import TokenShards


def write_shards(
    folder: Path, documents: Iterable[Sequence[int]], *, vocabulary_size: int = 1000, shard_tokens: int = 100
) -> TokenShards:
    """Documents as shards of about ``shard_tokens`` tokens."""
    config = ShardConfig(shard_tokens=shard_tokens)
    with ShardWriter(folder, vocabulary_size=vocabulary_size, config=config) as writer:
        for number, ids in enumerate(documents):
            writer.add(number, ids)
        writer.finish()
    return TokenShards(folder)


def random_documents(count: int, seed: int = 0, longest: int = 60, vocabulary_size: int = 1000) -> list[list[int]]:
    """Documents of 1 to ``longest`` random ids."""
    random_ = random.Random(seed)
    return [[random_.randrange(vocabulary_size) for _ in range(random_.randint(1, longest))] for _ in range(count)]


def numbered_documents(count: int, seed: int = 0, longest: int = 60) -> list[list[int]]:
    """Documents of 1 to ``longest`` ids; no id comes twice, so that every token can be told from the others."""
    random_ = random.Random(seed)
    documents: list[list[int]] = []
    first = 0
    for _ in range(count):
        length = random_.randint(1, longest)
        documents.append(list(range(first, first + length)))
        first += length
    return documents
