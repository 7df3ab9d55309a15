"""One file by URL, pinned by sha256, into a cache: resumed, retried, checked.

Downloads into ``NAME.part``, which survives a kill; the next call goes on where it ended. Knows nothing of packages.
"""

from __future__ import annotations

import http.client
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from danlu.core.errors import FetchError
from danlu.core.events import Events
from danlu.core.files import sha256_file, sync_folder

ATTEMPTS = 5
"""Downloads in a row that may fail without a byte of progress."""
CHUNK_BYTES = 1 << 18
TIMEOUT_S = 30
_PART = ".part"


def cached_file(folder: Path, sha256: str) -> Path | None:
    """The file already in ``folder``, whoever put it there; a wrong one is removed and reported."""
    for path in sorted(folder.glob("*")):
        if path.suffix == _PART or path.name.startswith(".") or not path.is_file():
            continue
        found = sha256_file(path)
        if found == sha256:
            return path
        path.unlink()
        raise _wrong_hash(path, sha256, found)
    return None


def download(url: str, path: Path, sha256: str, events: Events, *, pause_s: float = 1.0) -> None:
    """Fetch ``url`` as ``path``: retries go on from the last byte, give up after ATTEMPTS without progress."""
    part = path.with_name(f"{path.name}{_PART}")
    failures = 0
    while True:
        before = _size(part)
        try:
            _receive(url, part, events)
            break
        except _NETWORK_ERRORS as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures >= ATTEMPTS or _is_final(error):
                raise FetchError(
                    f"{path.name} could not be downloaded from {_host(url)}: {error}.",
                    f"{_size(part)} bytes are kept. Check the network, then run the same command to go on; "
                    f"or put the file into {path.parent} by hand.",
                ) from error
            time.sleep(pause_s * 2 ** (failures - 1))
    found = sha256_file(part)
    if found != sha256:
        part.unlink()
        raise _wrong_hash(path, sha256, found)
    os.replace(part, path)
    sync_folder(path.parent)


def _wrong_hash(path: Path, expected: str, found: str) -> FetchError:
    return FetchError(
        f"{path.name} is not the pinned file: sha256 is {found}, expected {expected}. It was deleted.",
        "Run the same command to fetch it again; if it stays wrong, the index serves another file.",
    )


def _receive(url: str, part: Path, events: Events) -> None:
    """One request, appended to ``part`` where the server allows it; IncompleteRead when it ends early."""
    have = _size(part)
    headers = {"User-Agent": "danlu", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return  # all of it is here already
        part.unlink()
        raise http.client.IncompleteRead(b"") from error
    with response:
        is_rest = response.status == 206 and (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-")
        start = have if is_rest else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        with (
            open(part, "ab" if is_rest else "wb") as handle,
            events.bar(f"download {part.stem}", total=total, unit="B", done=start) as bar,
        ):
            while chunk := response.read(CHUNK_BYTES):
                handle.write(chunk)
                bar.advance(len(chunk))
            handle.flush()
            os.fsync(handle.fileno())
            if total is not None and bar.done < total:
                raise http.client.IncompleteRead(b"", total - bar.done)


_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)


def _is_final(error: Exception) -> bool:
    """Whether trying again cannot help: the server said no, or a local file is not there."""
    if isinstance(error, urllib.error.HTTPError):
        return 400 <= error.code < 500 and error.code not in (408, 429)
    return isinstance(error, urllib.error.URLError) and isinstance(error.reason, FileNotFoundError)


def _host(url: str) -> str:
    """Where a URL points, without credentials."""
    return urllib.parse.urlparse(url).hostname or urllib.parse.urlparse(url).path


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
