"""Writes token shards: documents stream in, whole shards come out, and a killed writer goes on after its last one.

A shard is written under a temporary name, synced and renamed; ``progress.json`` then says up to which document all is
safe. ``index.json`` comes last: a folder without it is not finished. The same documents give the same bytes, however
often the writer was killed. Knows nothing of text; layout and reader are in shards.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from danlu.core.config import from_mapping, to_mapping
from danlu.core.errors import ConfigError, DataError
from danlu.core.files import atomic_write, disk_errors, read_json_object, sync_folder, write_json
from danlu.data.shards import INDEX, OFFSETS, ShardFiles, ShardIndex, dtype_for

PROGRESS = "progress.json"
_TEMPORARY = ".tokens.tmp"
_BUFFER_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """How shards are written."""

    shard_tokens: int = 1 << 26
    """Tokens after which a shard is closed; a document is never cut, so a shard may have more."""

    def __post_init__(self) -> None:
        if self.shard_tokens < 1:
            raise ConfigError(f"shard_tokens is {self.shard_tokens}.", "Use 1 or more.")


class ShardWriter:
    """Writes one folder. Give documents in order to ``add``, from ``next_document`` on; ``finish`` at the end.

    ``next_document`` is the number of the first document that is not safe on the disk yet. A context manager: leaving
    it without ``finish`` keeps the whole shards for the next writer.
    """

    def __init__(
        self, folder: Path, *, vocabulary_size: int, tokenizer_sha256: str = "", config: ShardConfig | None = None
    ) -> None:
        """Goes on in ``folder`` when a writer with the same arguments began there, else begins anew."""
        assert 0 < vocabulary_size <= 1 << 32
        self._folder = folder
        self._config = config or ShardConfig()
        empty = ShardIndex(
            dtype=dtype_for(vocabulary_size), vocabulary_size=vocabulary_size, tokenizer_sha256=tokenizer_sha256
        )
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / INDEX).unlink(missing_ok=True)
            self._sealed, self.next_document = self._progress(empty) or (empty, 0)
            self._remove_leftovers()
        self._dtype = empty.numpy_dtype
        self._last_document = self.next_document - 1
        self._open: _OpenShard | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open is not None:
            self._open.close()

    def add(
        self, number: int, ids: Sequence[int] | npt.NDArray[Any], *, text_bytes: int = 0, characters: int = 0
    ) -> None:
        """Write document ``number``, one id at least; numbers grow, with gaps for documents that go elsewhere.

        DataError when an id is not in the vocabulary.
        """
        assert number > self._last_document, "documents come in order"
        values = np.asarray(ids, dtype=np.int64)
        assert values.ndim == 1, "a document is a row of ids"
        assert values.size, "a document has one id at least"
        smallest, largest = int(values.min()), int(values.max())
        if smallest < 0 or largest >= self._sealed.vocabulary_size:
            wrong = smallest if smallest < 0 else largest
            raise DataError(
                f"Document {number} has the id {wrong}, but the vocabulary has {self._sealed.vocabulary_size}.",
                "Is the tokenizer the one that vocabulary_size was taken from?",
            )
        with disk_errors(self._folder):
            if self._open is None:
                self._open = _OpenShard(self._folder, len(self._sealed.shards))
            self._open.add(values.astype(self._dtype), text_bytes, characters)
            self._last_document = number
            if self._open.offsets[-1] >= self._config.shard_tokens:
                self._seal(self._open)

    def finish(self) -> ShardIndex:
        """Close the last shard and write the index."""
        with disk_errors(self._folder):
            if self._open is not None:
                self._seal(self._open)
            write_json(self._folder / INDEX, to_mapping(self._sealed))
            (self._folder / PROGRESS).unlink(missing_ok=True)
        return self._sealed

    def _seal(self, shard: _OpenShard) -> None:
        """Make the open shard whole, then say so."""
        files = shard.seal()
        before = self._sealed
        self._sealed = dataclasses.replace(
            before,
            num_documents=before.num_documents + files.num_documents,
            num_tokens=before.num_tokens + files.num_tokens,
            text_bytes=before.text_bytes + shard.text_bytes,
            characters=before.characters + shard.characters,
            shards=(*before.shards, files),
        )
        self._open = None
        self.next_document = self._last_document + 1
        progress = {"shard_tokens": self._config.shard_tokens, "next_document": self.next_document}
        write_json(self._folder / PROGRESS, {**progress, "index": to_mapping(self._sealed)})

    def _remove_leftovers(self) -> None:
        """Files of ours that no whole shard owns: what a killed writer had begun, or other settings made."""
        owned = {name for shard in self._sealed.shards for name in (shard.tokens, shard.offsets)}
        if owned:
            owned.add(PROGRESS)
        for pattern in (".*.tmp", "tokens-*.bin", "offsets-*.bin", PROGRESS):
            for path in self._folder.glob(pattern):
                if path.name not in owned:
                    path.unlink()

    def _progress(self, empty: ShardIndex) -> tuple[ShardIndex, int] | None:
        """What an earlier writer finished; None when there is none, or its shards would be others."""
        path = self._folder / PROGRESS
        if not path.is_file():
            return None
        told = read_json_object(path)
        try:
            sealed = from_mapping(ShardIndex, told["index"], "index")
            next_document = int(told["next_document"])
            shard_tokens = told["shard_tokens"]
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise DataError(f"{path} is damaged: {error}.", "Remove the folder to begin anew.") from error
        blank = dataclasses.replace(sealed, num_documents=0, num_tokens=0, text_bytes=0, characters=0, shards=())
        sizes = {
            name: size
            for shard in sealed.shards
            for name, size in (
                (shard.tokens, shard.num_tokens * sealed.numpy_dtype.itemsize),
                (shard.offsets, (shard.num_documents + 1) * OFFSETS.itemsize),
            )
        }
        there = all(_size(self._folder / name) == size for name, size in sizes.items())
        if blank != empty or shard_tokens != self._config.shard_tokens or not there:
            return None
        return sealed, next_document


class _OpenShard:
    """A shard that is being written."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder = folder
        self._number = number
        self._handle: IO[bytes] = open(folder / _TEMPORARY, "wb", buffering=_BUFFER_BYTES)  # noqa: SIM115 - in seal
        self._hash = hashlib.sha256()
        self.offsets = array("q", [0])
        self.text_bytes = 0
        self.characters = 0

    def add(self, ids: npt.NDArray[Any], text_bytes: int, characters: int) -> None:
        content = ids.tobytes()
        self._handle.write(content)
        self._hash.update(content)
        self.offsets.append(self.offsets[-1] + len(ids))
        self.text_bytes += text_bytes
        self.characters += characters

    def close(self) -> None:
        """Give up the shard; its file is overwritten by the next writer."""
        self._handle.close()

    def seal(self) -> ShardFiles:
        """Give both files their names once they are on the disk."""
        tokens, offsets = f"tokens-{self._number:05d}.bin", f"offsets-{self._number:05d}.bin"
        content = np.frombuffer(self.offsets, np.int64).astype(OFFSETS).tobytes()
        with atomic_write(self._folder / offsets, "wb") as handle:
            handle.write(content)
        with self._handle:
            self._handle.flush()
            os.fsync(self._handle.fileno())
        os.replace(self._folder / _TEMPORARY, self._folder / tokens)
        sync_folder(self._folder)
        return ShardFiles(
            tokens=tokens,
            offsets=offsets,
            num_documents=len(self.offsets) - 1,
            num_tokens=self.offsets[-1],
            tokens_sha256=self._hash.hexdigest(),
            offsets_sha256=hashlib.sha256(content).hexdigest(),
        )


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
