"""Files that are either whole or absent: write to a temporary name, fsync, rename. Hashes and JSONL.

Knows nothing of artifacts or stores; it only keeps single files and folders honest.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from danlu.core.errors import ConfigError, DataError, ResourceError

_REFUSALS = (
    errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG
)  # fmt: skip


@contextmanager
def disk_errors(path: Path) -> Generator[None]:
    """Turn 'disk full', 'read-only' and 'not a folder' into a ResourceError that says where, and how much is free."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            existing = next(p for p in [path, *path.parents] if p.exists())
            free = shutil.disk_usage(existing).free
            raise ResourceError(
                f"The disk is full: {path} could not be written ({free / 1e6:.0f} MB free).",
                "Free space or set DANLU_HOME to a larger disk, then run the same command: finished work is kept.",
            ) from error
        if error.errno in _REFUSALS:
            raise ResourceError(
                f"{path} cannot be written: {error.strerror}.", "Check its permissions, or set DANLU_HOME elsewhere."
            ) from error
        raise


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Generator[IO[Any]]:
    """Open a temporary file beside ``path``; on success it is fsynced and renamed, on failure removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def require_no_folder(path: Path) -> None:
    """Raise ConfigError when something is there already, other than an empty folder."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError(f"{path} exists.", "Give the name of a folder that is not there yet, or is empty.")


@contextmanager
def atomic_folder(path: Path) -> Generator[Path]:
    """A folder beside ``path`` to write into; on success it becomes ``path``, on failure it is removed.

    Raises ConfigError when something is there already, other than an empty folder.
    """
    require_no_folder(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    with disk_errors(path):
        unfinished.mkdir(parents=True)
        try:
            yield unfinished
            os.replace(unfinished, path)
            sync_folder(path.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Make a rename inside ``path`` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _missing(path: Path) -> DataError:
    return DataError(f"There is no {path.name} in {path.parent}.", "Is this the right folder, made by the right stage?")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value, indented, atomically."""
    with atomic_write(path) as handle:
        json.dump(value, handle, indent=2, ensure_ascii=False)
        handle.write("\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; DataError when it is missing or not one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or numbers and nesting beyond reason
        raise DataError(f"{path} is not JSON: {error}", "It may be damaged; make it again.") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; DataError when it is missing or holds something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object.", "It may be damaged; make it again.")
    return cast("dict[str, Any]", value)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as JSON lines, atomically; returns how many."""
    count = 0
    with atomic_write(path) as handle:
        for row in rows:
            try:
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")
            except UnicodeEncodeError as error:
                raise DataError(
                    f"Row {count + 1} for {path} holds half a character ({error.object[error.start]!r}).", _HALF_HINT
                ) from error
            count += 1
    return count


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file; a broken line is a DataError naming file and line."""
    for number, line in enumerate(utf8_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number} is not JSON: {line.strip()[:80]!r} ({error.msg}).", "Mend or remove the line."
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is {line.strip()[:80]!r}, not an object.", "One object a line.")
        if "\\ud" in line.lower():
            _refuse_half_characters(row, path, number)
        yield cast("dict[str, Any]", row)


_HALF_HINT = "It was cut inside an emoji or rare character; mend or remove it."


def _refuse_half_characters(row: Any, path: Path, number: int) -> None:
    """An escape for one half of a surrogate pair is valid JSON but no text; nothing later could write it."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise DataError(f"{path}, line {number} holds half a character ({half!r}).", _HALF_HINT) from error


def utf8_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file (a leading byte-order mark is dropped); other bytes are a DataError naming the place."""
    try:
        handle = open(path, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError as error:
        raise _missing(path) from error
    with handle:
        for number, raw in enumerate(handle, start=1):
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                raise DataError(
                    f"{path}, line {number} is not UTF-8 (byte {byte:#04x} at position {error.start + 1}).",
                    f"Convert it, for example: iconv -f gb18030 -t utf-8 {path.name}.",
                ) from error
