"""One process of the engine as its parent sees it, and how often it may crash before nobody starts it again.

Knows nothing of requests.
"""

from __future__ import annotations

import collections
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from danlu.core.errors import ConfigError, ResourceError
from danlu.serve.engine.outbox import Outbox
from danlu.serve.engine.spec import EngineSpec
from danlu.serve.engine.wire import MAX_FRAME_BYTES, FrameReader, hello, pack

COMMAND = (sys.executable, "-m", "danlu.serve.engine.process")
"""Starts our engine; the path of the socket and the parent's id follow."""
_LONGEST_PATH = 90
"""A Unix socket's path must be shorter than 108 bytes; its file's name takes some."""
_ABORT_S = 1.0


@dataclass(frozen=True, kw_only=True)
class RemoteConfig:
    """How the engine's process is watched."""

    stall_s: float = 60.0
    """The process is started anew when it has stood still this long with work to do."""
    max_crashes: int = 5
    """Crashes within ``crash_window_s`` after which it is not started again."""
    crash_window_s: float = 600.0
    """See ``max_crashes``."""
    first_delay_s: float = 0.5
    """Delay before it is started again; it doubles with each further crash."""
    most_delay_s: float = 30.0
    """Longest such delay."""
    max_open: int = 4096
    """Requests inside the process; more are refused with 429."""
    max_frame_bytes: int = MAX_FRAME_BYTES
    """Largest message between the processes."""
    stop_s: float = 5.0
    """Time that the process gets to end after its drain, before it is killed."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"{name} is {value}.", "Use more than 0.")


_FEW_KERNELS = {"LRU_CACHE_CAPACITY": "128", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}
"""torch and oneDNN keep a compiled kernel for every shape and number of rows they meet: hundreds of megabytes of them
after some thousand requests (docs/log.md)."""


class Crashes:
    """Counts crashes, and tells how long to wait after each."""

    def __init__(self, config: RemoteConfig) -> None:
        self._config = config
        self._times: collections.deque[float] = collections.deque()

    def add(self, now_s: float) -> float | None:
        """Seconds until the process is started again; None when it is not any more."""
        config = self._config
        self._times.append(now_s)
        while self._times[0] < now_s - config.crash_window_s:
            self._times.popleft()
        if len(self._times) >= config.max_crashes:
            return None
        return min(config.first_delay_s * 2 ** (len(self._times) - 1), config.most_delay_s)


class Process:
    """A started process and the socket to it.

    Start it from a thread that lives at least as long: Linux counts the death of that thread as the parent's.
    """

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket, config: RemoteConfig) -> None:
        self.pid = process.pid
        self.reader = FrameReader(sock, config.max_frame_bytes)
        self.outbox = Outbox(sock, max_frame_bytes=config.max_frame_bytes)
        self._process = process
        self._sock = sock

    @classmethod
    def start(
        cls, command: Sequence[str], spec: EngineSpec, config: RemoteConfig, is_over: Callable[[], bool]
    ) -> Process:
        """Start ``command``, connect and send ``spec``; ``is_over`` ends the wait (ResourceError)."""
        folder = Path(tempfile.mkdtemp(prefix="danlu-", dir=_socket_root()))
        try:
            path = folder / "engine"
            process = subprocess.Popen(
                [*command, str(path), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # where its log goes too: stdout is for results
                start_new_session=True,  # Ctrl-C in a terminal is for the parent alone
                env={**_FEW_KERNELS, **os.environ, "TOKENIZERS_PARALLELISM": "false"},
            )
            try:
                sock = _connect(path, process, is_over)
            except BaseException:
                process.kill()
                process.wait()
                raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        found = cls(process, sock, config)
        found.outbox.put(hello())
        found.outbox.put(pack("spec", 0, spec))
        return found

    def kill(self, *, is_hung: bool = False) -> None:
        """End it at once; one that hangs is made to write to its log where it stands."""
        if is_hung:
            self._process.send_signal(signal.SIGABRT)
            self.wait(_ABORT_S)
        self._process.kill()

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended within ``timeout_s``."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self, timeout_s: float) -> str:
        """Say good-bye, wait, kill what is left; how it ended, in words."""
        self.outbox.close()
        with contextlib.suppress(OSError):  # the other side may be gone
            self._sock.shutdown(socket.SHUT_RDWR)
        if not self.wait(timeout_s):
            self._process.kill()
            self._process.wait()
        self._sock.close()
        return ending(self._process.returncode)


def ending(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    return name + (" (out of memory?)" if name == "SIGKILL" else "")


def _socket_root() -> str:
    root = tempfile.gettempdir()
    return root if len(os.fsencode(root)) < _LONGEST_PATH - 20 else "/tmp"


def _connect(path: Path, process: subprocess.Popen[bytes], is_over: Callable[[], bool]) -> socket.socket:
    """The connection to a process that has just been started."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        while True:
            try:
                sock.connect(str(path))
                return sock
            except (FileNotFoundError, ConnectionRefusedError):  # it is not there yet
                if process.poll() is not None:
                    raise ResourceError(
                        f"The engine's process ended before it began ({ending(process.returncode)}).",
                        "Its log is above.",
                    ) from None
                if is_over():
                    raise ResourceError("The engine was told to stop while it started.") from None
                time.sleep(0.01)
    except BaseException:
        sock.close()
        raise
