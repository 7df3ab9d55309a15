"""near_dedup: drops texts that nearly repeat another: MinHash bands propose pairs, exact Jaccard similarity decides.

Shingles are word n-grams, and character n-grams for Chinese, where words have no spaces. Numbers are kept as they are:
two sizes or two prices are two texts. Of each group of duplicates the longest text stays, the earliest among equals.
Source: Broder 1997; banding as in Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from danlu.core.errors import ConfigError
from danlu.data.pipeline import Applied, Operator, load_daft, texts
from danlu.data.words import is_chinese, units


@dataclass(frozen=True, kw_only=True)
class NearDedupConfig:
    """How alike two texts must be to count as one."""

    threshold: float = 0.8
    """Jaccard similarity of the shingle sets from which two texts are duplicates."""
    word_ngram: int = 3
    """Words a shingle (texts without Chinese)."""
    han_ngram: int = 5
    """Characters a shingle (Chinese texts)."""
    bands: int = 14
    """Groups of hashes; pairs equal in one group are compared exactly. More finds more, slower."""
    rows: int = 8
    """Hashes a group."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold}.", "Use more than 0, at most 1.")
        if min(self.word_ngram, self.han_ngram, self.bands, self.rows) < 1:
            raise ConfigError("word_ngram, han_ngram, bands or rows is below 1.", "Use 1 or more.")


def apply(table: pa.Table, config: NearDedupConfig) -> Applied:
    """Drop all but one of each group of near duplicates; the detail names that one and the similarity to it."""
    ids, documents = table.column("id").to_pylist(), texts(table, "text")
    tokens = [units(text.casefold()) for text in documents]
    chinese = [is_chinese(text) for text in documents]
    groups = _Groups(len(documents))
    for is_han, ngram in ((False, config.word_ngram), (True, config.han_ngram)):
        members = [i for i, words in enumerate(tokens) if words and chinese[i] is is_han]
        signatures = _signatures([" ".join(tokens[i]) for i in members], ngram, config)
        for left, right in _candidates(signatures, config):
            a, b = members[left], members[right]
            if groups.root(a) != groups.root(b) and _similarity(tokens[a], tokens[b], ngram) >= config.threshold:
                groups.join(a, b)
    kept = groups.kept([len(text) for text in documents])
    details: list[str | None] = [None] * len(documents)
    for i, keeper in kept.items():
        ngram = config.han_ngram if chinese[i] else config.word_ngram
        details[i] = f"{ids[keeper]} ({_similarity(tokens[i], tokens[keeper], ngram):.2f})"
    return Applied(table=table, reasons=[detail and "near_duplicate" for detail in details], details=details)


def _signatures(documents: Sequence[str], ngram: int, config: NearDedupConfig) -> npt.NDArray[np.uint32]:
    """MinHash of space-separated tokens, [documents, bands × rows]."""
    if not documents:
        return np.empty((0, config.bands * config.rows), np.uint32)
    daft = load_daft()
    from daft.functions import minhash

    hashes = minhash(daft.col("text"), num_hashes=config.bands * config.rows, ngram_size=ngram, seed=1)
    column = daft.from_pydict({"text": list(documents)}).select(hashes.alias("m")).to_arrow().column("m")
    return column.combine_chunks().flatten().to_numpy().reshape(len(documents), -1)


def _candidates(signatures: npt.NDArray[np.uint32], config: NearDedupConfig) -> Iterator[tuple[int, int]]:
    """Pairs sharing a band: each member of a bucket with the bucket's first, and with its neighbour."""
    for band in range(config.bands):
        part = np.ascontiguousarray(signatures[:, band * config.rows : (band + 1) * config.rows])
        keys = part.view(np.dtype((np.void, part.itemsize * config.rows))).ravel()
        order = np.argsort(keys, kind="stable")
        edges = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
        for bucket in np.split(order, edges):
            if len(bucket) > 1:
                members = bucket.tolist()
                yield from sorted({(members[0], member) for member in members[1:]} | set(pairwise(members)))


def _similarity(left: Sequence[str], right: Sequence[str], ngram: int) -> float:
    """Jaccard similarity of two token sequences' shingle sets."""
    a, b = set(_shingles(left, ngram)), set(_shingles(right, ngram))
    return len(a & b) / len(a | b)


def _shingles(tokens: Sequence[str], ngram: int) -> Iterable[tuple[str, ...]]:
    """Overlapping n-grams; a shorter text is one shingle."""
    return (tuple(tokens[i : i + ngram]) for i in range(max(1, len(tokens) - ngram + 1)))


class _Groups:
    """Union-find over row numbers."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def root(self, i: int) -> int:
        """The smallest row number of i's group."""
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def join(self, a: int, b: int) -> None:
        """Make one group of two."""
        a, b = self.root(a), self.root(b)
        self._parent[max(a, b)] = min(a, b)

    def kept(self, lengths: Sequence[int]) -> dict[int, int]:
        """Each row to drop, and the row that stays in its place."""
        members: dict[int, list[int]] = {}
        for i in range(len(self._parent)):
            members.setdefault(self.root(i), []).append(i)
        best = {root: max(rows, key=lambda i: (lengths[i], -i)) for root, rows in members.items() if len(rows) > 1}
        return {i: best[root] for root, rows in members.items() if root in best for i in rows if i != best[root]}


plugin = Operator(name="near_dedup", version=1, scope="table", config_type=NearDedupConfig, apply=apply)
