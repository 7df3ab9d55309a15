"""Fetching against a server on this machine that can be made to misbehave."""

from __future__ import annotations

import errno
import hashlib
import io
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import FetchError, ResourceError
from danlu.core.events import Events
from danlu.data.sources import download, registries
from danlu.data.sources.packages import fetch_member

NAME = "toy-1.0-py3-none-any.whl"


def _wheel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("toy/data.bin"), bytes(range(256)) * 4000)
    return buffer.getvalue()


WHEEL = _wheel()
SHA256 = hashlib.sha256(WHEEL).hexdigest()


@dataclass
class Server:
    """What the server does, and the Range headers that it got."""

    url: str = ""
    content: bytes = WHEEL
    has_ranges: bool = True
    cut_after: list[int] = field(default_factory=list)
    """Bytes to send before hanging up, one entry a request; later requests are whole."""
    status: int | None = None
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.ranges.append(wanted)
            if state.status is not None:
                self.send_error(state.status)
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.has_ranges else 0
            if start >= len(state.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(state.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = state.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.cut_after.pop(0)] if state.cut_after else body)

        def log_message(self, format: str, *args: Any) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_port}/files/{NAME}"
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


def _fetch(server: Server, folder: Path, sha256: str = SHA256, member: str = "toy/data.bin", **more: Any) -> bytes:
    options = {"resolve": lambda package, version: server.url, "pause_s": 0.0, **more}
    out = fetch_member("toy", "1.0", member, sha256, folder / "cache", folder / "out/data.bin", Events(), **options)
    return out.read_bytes()


def _part(folder: Path, content: bytes) -> Path:
    part = folder / "cache" / SHA256 / f"{NAME}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    return part


def test_the_member_is_extracted_and_the_wheel_cached(server: Server, tmp_path: Path) -> None:
    assert _fetch(server, tmp_path) == bytes(range(256)) * 4000
    assert (tmp_path / "cache" / SHA256 / NAME).read_bytes() == WHEEL
    assert _fetch(server, tmp_path) == bytes(range(256)) * 4000
    assert server.ranges == [None]


def test_a_wheel_put_into_the_cache_by_hand_needs_no_network(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / SHA256
    folder.mkdir(parents=True)
    (folder / "any-name.whl").write_bytes(WHEEL)

    def no_network(package: str, version: str) -> str:
        raise AssertionError("pip was asked")

    assert len(_fetch(Server(), tmp_path, resolve=no_network)) == 256 * 4000


def test_a_download_that_was_killed_goes_on_where_it_ended(server: Server, tmp_path: Path) -> None:
    _part(tmp_path, WHEEL[:5000])
    _fetch(server, tmp_path)
    assert server.ranges == ["bytes=5000-"]


def test_a_server_without_ranges_sends_it_all_again(server: Server, tmp_path: Path) -> None:
    server.has_ranges = False
    _part(tmp_path, b"x" * 5000)
    _fetch(server, tmp_path)
    assert server.ranges == ["bytes=5000-"]


def test_a_connection_that_breaks_is_resumed_and_never_taken_for_whole(server: Server, tmp_path: Path) -> None:
    server.cut_after = [1000, 70_000]
    _fetch(server, tmp_path)
    assert server.ranges == [None, "bytes=1000-", "bytes=71000-"]


def test_a_part_that_is_complete_already_is_only_checked(server: Server, tmp_path: Path) -> None:
    _part(tmp_path, WHEEL)
    _fetch(server, tmp_path)
    assert server.ranges == [f"bytes={len(WHEEL)}-"]


def test_a_part_longer_than_the_file_is_begun_again(server: Server, tmp_path: Path) -> None:
    _part(tmp_path, WHEEL + b"x")
    _fetch(server, tmp_path)
    assert server.ranges == [f"bytes={len(WHEEL) + 1}-", None]


def test_a_server_that_keeps_hanging_up_is_given_up_with_the_bytes_kept(server: Server, tmp_path: Path) -> None:
    server.cut_after = [1000] + [0] * 10
    with pytest.raises(FetchError, match=r"could not be downloaded from 127\.0\.0\.1: .*1000 bytes are kept"):
        _fetch(server, tmp_path)
    assert not (tmp_path / "out").exists()
    server.cut_after = []
    assert len(_fetch(server, tmp_path)) == 256 * 4000


def test_a_server_that_refuses_is_not_asked_again(server: Server, tmp_path: Path) -> None:
    server.status = 403
    with pytest.raises(FetchError, match=r"HTTP Error 403.*put the file into .* by hand"):
        _fetch(server, tmp_path)
    assert len(server.ranges) == 1


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.status = 503
    with pytest.raises(FetchError, match="503"):
        _fetch(server, tmp_path)
    assert len(server.ranges) == download.ATTEMPTS


def test_another_file_than_the_pinned_one_is_refused_and_deleted(server: Server, tmp_path: Path) -> None:
    server.content = WHEEL + b"more"
    found = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(FetchError, match=f"not the pinned file: sha256 is {found}, expected {SHA256}. It was deleted"):
        _fetch(server, tmp_path)
    assert list((tmp_path / "cache" / SHA256).iterdir()) == []


def test_a_damaged_cached_wheel_is_reported_and_deleted(server: Server, tmp_path: Path) -> None:
    _fetch(server, tmp_path)
    cached = tmp_path / "cache" / SHA256 / NAME
    cached.write_bytes(b"damaged")
    with pytest.raises(FetchError, match="not the pinned file"):
        _fetch(server, tmp_path)
    assert not cached.exists()


def test_a_missing_member_is_named_with_the_nearest(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"has no file 'toy/date\.bin'\. Did you mean 'toy/data\.bin'"):
        _fetch(server, tmp_path, member="toy/date.bin")


def test_a_file_url_works_too(tmp_path: Path) -> None:
    wheel = tmp_path / NAME
    wheel.write_bytes(WHEEL)
    assert len(_fetch(Server(url=wheel.as_uri()), tmp_path)) == 256 * 4000


def test_a_file_url_to_nothing_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="could not be downloaded"):
        _fetch(Server(url=(tmp_path / "none.whl").as_uri()), tmp_path)


def test_a_full_disk_says_so(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_receive", full)
    with pytest.raises(ResourceError, match=r"The disk is full: .* could not be written"):
        _fetch(server, tmp_path)


def test_pip_that_finds_nothing_is_an_error_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "install"]
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: No matching distribution\n")

    monkeypatch.setattr(subprocess, "run", ran)
    with pytest.raises(FetchError, match=r"pip could not find toy==1\.0: ERROR: No matching.*by hand") as caught:
        _fetch(Server(), tmp_path, resolve=registries.ask_pip)
    assert str(tmp_path / "cache" / SHA256) in caught.value.hint


def test_pip_tells_the_url_from_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        report = Path(command[command.index("--report") + 1])
        report.write_text('{"install": [{"download_info": {"url": "https://x.invalid/toy.whl"}}]}', encoding="utf-8")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", ran)
    assert registries.ask_pip("toy", "1.0") == "https://x.invalid/toy.whl"
