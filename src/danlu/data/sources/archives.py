"""Files inside a package: a Python wheel, an npm tarball or a Debian package, read without unpacking or running it.

Names are those inside the package: without npm's ``package/`` and Debian's ``./``. Knows nothing of registries.
"""

from __future__ import annotations

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from danlu.core.errors import FetchError, nearest
from danlu.core.files import atomic_write

_CHUNK_BYTES = 1 << 18
_AR_MAGIC = b"!<arch>\n"
_AR_HEADER_BYTES = 60

Entry = tuple[str, Callable[[], IO[bytes]]]
"""Name of a file, and what opens it; a tar's must be opened before the next entry is taken."""


def is_pattern(member: str) -> bool:
    """Whether a member stands for many files: it holds a ``*``."""
    return "*" in member


def extract(archive: Path, member: str, out: Path) -> None:
    """Write one file of ``archive`` to ``out``, whole or not at all."""
    names: list[str] = []
    for name, open_entry in entries(archive):
        names.append(name)
        if name == member:
            _write(open_entry, out)
            return
    raise FetchError(f"{archive.name} has no file '{member}'.", nearest(member, names))


def extract_all(archive: Path, pattern: str, folder: Path) -> int:
    """Write every file that matches ``pattern`` to its own path below ``folder``; returns how many.

    ``*`` stands for any part of one name, not for folders: ``data/*.json``.
    """
    count = 0
    for name, open_entry in entries(archive):
        path = PurePosixPath(name)
        if len(path.parts) != len(PurePosixPath(pattern).parts) or not path.match(pattern):
            continue
        if path.is_absolute() or ".." in path.parts:
            raise FetchError(f"{archive.name} has a file {name!r}, outside of its folder.", "Use another package.")
        _write(open_entry, folder / path)
        count += 1
    if not count:
        raise FetchError(f"{archive.name} has no file like '{pattern}'.", "Mend the pattern; * stays inside a folder.")
    return count


def entries(archive: Path) -> Iterator[Entry]:
    """The files of a package in their order; FetchError when it cannot be read."""
    try:
        with open(archive, "rb") as handle:
            magic = handle.read(len(_AR_MAGIC))
        if magic == _AR_MAGIC:
            yield from _deb_entries(archive)
        elif magic[:2] == b"PK":
            yield from _zip_entries(archive)
        else:
            yield from _npm_entries(archive)
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError) as error:
        raise FetchError(f"{archive.name} is no wheel, tarball or Debian package: {error}.", "Mend the pin.") from error


def _zip_entries(archive: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            if not info.is_dir():
                yield info.filename, lambda info=info: opened.open(info)


def _npm_entries(archive: Path) -> Iterator[Entry]:
    """Below the one folder that all files of a tarball are in."""
    with tarfile.open(archive, "r|*") as opened:
        for name, open_entry in _tar_entries(opened):
            yield name.partition("/")[2] or name, open_entry


def _deb_entries(archive: Path) -> Iterator[Entry]:
    """Of the data part of a Debian package (deb(5)): an ``ar`` archive of three files, one a tar."""
    with _deb_data(archive) as handle, tarfile.open(fileobj=handle, mode="r|*") as opened:
        for name, open_entry in _tar_entries(opened):
            yield name.removeprefix("./"), open_entry


@contextmanager
def _deb_data(archive: Path) -> Iterator[IO[bytes]]:
    """The package's file, standing where its data part begins."""
    with open(archive, "rb") as handle:
        handle.seek(len(_AR_MAGIC))
        while len(header := handle.read(_AR_HEADER_BYTES)) == _AR_HEADER_BYTES and header[48:58].strip().isdigit():
            name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
            if name.startswith("data.tar"):
                break
            handle.seek(size + size % 2, 1)
        else:
            raise tarfile.ReadError("it has no data part")
        yield handle


def _tar_entries(opened: tarfile.TarFile) -> Iterator[Entry]:
    for member in opened:
        if member.isfile():
            yield member.name, lambda member=member: _opened(opened.extractfile(member))


def _opened(handle: IO[bytes] | None) -> IO[bytes]:
    assert handle is not None, "only plain files are listed"
    return handle


def _write(open_entry: Callable[[], IO[bytes]], out: Path) -> None:
    with open_entry() as source, atomic_write(out, "wb") as target:
        shutil.copyfileobj(source, target, _CHUNK_BYTES)
