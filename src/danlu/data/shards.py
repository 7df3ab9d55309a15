"""Token shards: documents as ids in flat binary files that are mapped, not read.

A folder has ``index.json`` and, for each shard, two files without headers, little-endian: ``tokens-00000.bin`` (uint16,
or uint32 for vocabularies over 65,536), all documents end to end, and ``offsets-00000.bin`` (int64), where each
document begins, then where the last one ends. ``numpy.memmap(path, "<u2")`` reads them anywhere. Reading trusts
nothing: sizes, offsets and ids are checked, and what does not fit is a DataError. Knows nothing of text or batches.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from danlu.core.config import from_mapping
from danlu.core.errors import ConfigError, DataError
from danlu.core.files import read_json_object, sha256_file

INDEX = "index.json"
FORMAT_VERSION = 1
MAGIC = "danlu-token-shards"
OFFSETS = np.dtype("<i8")
_BLOCK = 1 << 20
"""Numbers checked at a time, so that checking needs little memory."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Tokens = npt.NDArray[np.unsignedinteger[Any]]
Integers = npt.NDArray[np.int64]
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


@dataclass(frozen=True, kw_only=True)
class ShardFiles:
    """One shard."""

    tokens: str
    """Name of the file of ids."""
    offsets: str
    """Name of the file of document boundaries."""
    num_documents: int
    """Documents in it, one at least."""
    num_tokens: int
    """Ids in it, one a document at least."""
    tokens_sha256: str
    """Hash of the file of ids."""
    offsets_sha256: str
    """Hash of the file of boundaries."""

    def __post_init__(self) -> None:
        for name in (self.tokens, self.offsets):
            if not _NAME.fullmatch(name):
                raise DataError(f"A shard's file is called {name!r}.", "It may be damaged; make it again.")
        if not 0 < self.num_documents <= self.num_tokens:
            raise DataError(
                f"{self.tokens} is said to have {self.num_documents} documents with {self.num_tokens} tokens.",
                "It may be damaged; make it again.",
            )


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """What ``index.json`` says."""

    format: str = MAGIC
    """Always the same word."""
    version: int = FORMAT_VERSION
    """Raised when the layout changes."""
    dtype: Literal["uint16", "uint32"]
    """Form of an id."""
    vocabulary_size: int
    """Ids are below it."""
    tokenizer_sha256: str
    """Hash of the tokenizer.json that made the ids; empty when not known."""
    num_documents: int = 0
    """Documents of all shards."""
    num_tokens: int = 0
    """Ids of all shards."""
    text_bytes: int = 0
    """UTF-8 bytes of the documents' text, for bits per byte; 0 when not known."""
    characters: int = 0
    """Characters of the documents' text; 0 when not known."""
    shards: tuple[ShardFiles, ...] = ()
    """In order."""

    def __post_init__(self) -> None:
        if (self.format, self.version) != (MAGIC, FORMAT_VERSION):
            raise DataError(
                f"It is {self.format!r}, version {self.version}; {MAGIC!r}, version {FORMAT_VERSION}, is read.",
                "Make it again with this version of danlu.",
            )
        told = self.num_documents, self.num_tokens
        counted = sum(s.num_documents for s in self.shards), sum(s.num_tokens for s in self.shards)
        if told != counted:
            message = f"It tells of {told[0]} documents with {told[1]} tokens, its shards of {counted[0]} with "
            raise DataError(f"{message}{counted[1]}.", "It may be damaged; make it again.")
        if not 0 < self.vocabulary_size <= 1 << 8 * DTYPES[self.dtype].itemsize:
            message = f"vocabulary_size is {self.vocabulary_size}, which {self.dtype} does not hold."
            raise DataError(message, "It may be damaged; make it again.")

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Form of an id, for numpy."""
        return DTYPES[self.dtype]


def dtype_for(vocabulary_size: int) -> Literal["uint16", "uint32"]:
    """The smaller form that holds all ids."""
    return "uint16" if vocabulary_size <= 1 << 16 else "uint32"


class TokenShards:
    """A folder of shards, mapped. Documents and tokens are numbered over all shards."""

    def __init__(self, folder: Path) -> None:
        """Map and check everything but the hashes; DataError when something is not as the index says."""
        self.folder = folder
        self.index = _read_index(folder)
        if len({name for shard in self.index.shards for name in (shard.tokens, shard.offsets)}) < 2 * len(
            self.index.shards
        ):
            raise DataError(f"{folder / INDEX} names one file twice.", "It may be damaged; make it again.")
        self._tokens = [_map(folder / s.tokens, self.index.numpy_dtype, s.num_tokens) for s in self.index.shards]
        self._offsets = [_map(folder / s.offsets, OFFSETS, s.num_documents + 1) for s in self.index.shards]
        for shard, offsets in zip(self.index.shards, self._offsets, strict=True):
            _check_offsets(folder / shard.offsets, offsets, shard.num_tokens)
        self._first_token = np.cumsum([0, *(s.num_tokens for s in self.index.shards)], dtype=np.int64)
        self._first_document = np.cumsum([0, *(s.num_documents for s in self.index.shards)], dtype=np.int64)

    @property
    def num_documents(self) -> int:
        """Documents of all shards."""
        return self.index.num_documents

    @property
    def num_tokens(self) -> int:
        """Tokens of all shards."""
        return self.index.num_tokens

    @property
    def vocabulary_size(self) -> int:
        """Ids are below it."""
        return self.index.vocabulary_size

    def tokens(self, start: int, stop: int) -> Tokens:
        """Ids start … stop - 1, (stop - start,): a read-only view, or a copy where a shard ends in between."""
        assert 0 <= start <= stop <= self.num_tokens
        first = int(np.searchsorted(self._first_token, start, side="right")) - 1
        parts: list[Tokens] = []
        while start < stop:
            begin, end = int(self._first_token[first]), int(self._first_token[first + 1])
            parts.append(self._tokens[first][start - begin : min(stop, end) - begin])
            start, first = min(stop, end), first + 1
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, self.index.numpy_dtype)

    def document(self, number: int) -> Tokens:
        """Ids of one document, a read-only view."""
        starts, stops = self.spans(np.array([number]))
        return self.tokens(int(starts[0]), int(stops[0]))

    def documents(self) -> Iterator[Tokens]:
        """Every document in order, each a read-only view."""
        for tokens, offsets in zip(self._tokens, self._offsets, strict=True):
            for start, stop in itertools.pairwise(offsets):
                yield tokens[start:stop]

    def spans(self, documents: Integers) -> tuple[Integers, Integers]:
        """Where documents begin and end among all tokens: two arrays like ``documents``."""
        assert documents.size == 0 or (documents.min() >= 0 and documents.max() < self.num_documents)
        shards = np.searchsorted(self._first_document, documents, side="right") - 1
        starts, stops = np.empty_like(documents), np.empty_like(documents)
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            inside = documents[here] - self._first_document[shard]
            starts[here] = self._offsets[shard][inside] + self._first_token[shard]
            stops[here] = self._offsets[shard][inside + 1] + self._first_token[shard]
        return starts, stops

    def lengths_between(self, start: int, stop: int) -> Integers:
        """Lengths of the pieces that document boundaries cut tokens start … stop - 1 into; they sum to the count."""
        first = int(np.searchsorted(self._first_token, start, side="right")) - 1
        cuts: list[Integers] = [np.array([start], np.int64)]
        while first < len(self._offsets) and self._first_token[first] < stop:
            base, ends = self._first_token[first], self._offsets[first][1:]
            low, high = np.searchsorted(ends, start - base, "right"), np.searchsorted(ends, stop - base, "left")
            cuts.append(ends[low:high] + base)
            first += 1
        cuts.append(np.array([stop], np.int64))
        return np.diff(np.concatenate(cuts))

    def verify(self) -> None:
        """Read every byte: DataError when a hash or an id is wrong."""
        for shard, tokens in zip(self.index.shards, self._tokens, strict=True):
            for name, expected in ((shard.tokens, shard.tokens_sha256), (shard.offsets, shard.offsets_sha256)):
                found = sha256_file(self.folder / name)
                if found != expected:
                    message = f"{self.folder / name} has sha256 {found}, not {expected}."
                    raise DataError(message, "It is damaged; make it again.")
            for start in range(0, len(tokens), _BLOCK):
                self.check_ids(tokens[start : start + _BLOCK])

    def check_ids(self, ids: npt.NDArray[np.integer[Any]]) -> None:
        """DataError when an id is beyond the vocabulary: a model would read past its embedding."""
        largest = int(ids.max(initial=0))
        if largest >= self.vocabulary_size:
            raise DataError(
                f"{self.folder} holds the id {largest}, but its vocabulary has {self.vocabulary_size}.",
                "It is damaged; make it again.",
            )


def _read_index(folder: Path) -> ShardIndex:
    path = folder / INDEX
    if not path.is_file():
        raise DataError(f"{folder} holds no token shards: there is no {INDEX}.", "Make them with the tokenize stage.")
    try:
        return from_mapping(ShardIndex, read_json_object(path), "index")
    except ConfigError as error:
        message = f"{path} is not an index of token shards: {error.message}"
        raise DataError(message, error.hint) from error


def _map(path: Path, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    """A file of exactly ``count`` numbers, as a read-only view of its bytes."""
    expected = count * dtype.itemsize
    found = path.stat().st_size if path.is_file() else None
    if found is None:
        raise DataError(f"There is no {path.name} in {path.parent}.", "The shards are not whole; make them again.")
    if found != expected:
        message = f"{path} has {found} bytes; {count} numbers of {dtype.itemsize} bytes are {expected}."
        raise DataError(message, "It was cut off or written by something else; make it again.")
    try:
        mapped = np.memmap(path, dtype, mode="r", shape=(count,))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be mapped: {error}.", "Check the disk, or make it again.") from error
    return mapped.view(np.ndarray)  # slices of a plain array cost a fifth of a memmap's


def _check_offsets(path: Path, offsets: npt.NDArray[np.int64], num_tokens: int) -> None:
    """They begin at 0, grow, and end at the number of tokens."""
    is_right = offsets[0] == 0 and offsets[-1] == num_tokens
    for start in range(0, len(offsets) - 1, _BLOCK):
        block = offsets[start : start + _BLOCK + 1]
        is_right = is_right and bool((block[1:] > block[:-1]).all())
    if not is_right:
        raise DataError(
            f"{path} does not lead from 0 to {num_tokens} in growing steps.", "It is damaged; make it again."
        )
