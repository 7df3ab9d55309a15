"""Who may talk to the engine's process."""

import os
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from danlu.serve.engine import process
from danlu.serve.engine.process import accept_peer, peer_user


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    until = time.monotonic() + 5
    while True:
        try:
            sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            assert time.monotonic() < until
            time.sleep(0.005)
        else:
            return sock


def test_the_kernel_tells_who_is_at_the_other_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_user(ours) == os.getuid()


def test_a_peer_of_another_user_is_turned_away_and_the_right_one_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    users = [12345, os.getuid()]
    monkeypatch.setattr(process, "peer_user", lambda sock: users.pop(0))
    taken: list[socket.socket] = []
    path = tmp_path / "s"
    thread = threading.Thread(target=lambda: taken.append(accept_peer(path, os.getuid())))
    thread.start()
    with connect(path) as stranger:
        mode = path.stat().st_mode if path.exists() else None
        assert stranger.recv(1) == b"", "closed at once"
        assert mode is None or stat.S_IMODE(mode) == 0o600
        with connect(path) as friend:
            thread.join(5)
            friend.sendall(b"x")
            assert taken[0].recv(1) == b"x"
            taken[0].close()
    assert "A peer of user 12345 was turned away." in caplog.text
    assert not path.exists(), "nobody else finds it"


def test_the_socket_is_only_for_its_user(tmp_path: Path) -> None:
    path = tmp_path / "s"
    thread = threading.Thread(target=lambda: accept_peer(path, os.getuid()).close())
    thread.start()
    until = time.monotonic() + 5
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.001)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    connect(path).close()
    thread.join(5)
