"""The engine's own process: one peer on a Unix socket, requests in, events out, until it is told to stop.

``python -m danlu.serve.engine.process SOCKET PARENT_PID`` is what RemoteEngine starts. Signals of a terminal are not
for it: it stops by command, or when its parent is gone. Loads torch only when the engine is built. Knows nothing of
HTTP.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Raw

from danlu.core.errors import DanluError, ResourceError
from danlu.serve.engine.host import Host
from danlu.serve.engine.outbox import Outbox
from danlu.serve.engine.request import ServingEngine
from danlu.serve.engine.spec import EngineSpec
from danlu.serve.engine.wire import (
    FrameReader,
    WireError,
    check_hello,
    hello,
    pack,
    pack_event,
    unpack,
)

Say = Callable[[str], None]
"""Tells the person one line."""
Build = Callable[[EngineSpec, Say], ServingEngine]
"""Makes the engine."""

_LOG = logging.getLogger(__name__)
_FLUSH_S = 10.0
_SWITCH_S = 0.001
"""Longest time that a thread which reads a prompt keeps the engine's thread from its next step."""
_OOM_SCORE = 500
"""Without memory, Linux ends this process, which is started again, before the server that does so."""
_PR_SET_PDEATHSIG = 1


def build_engine(spec: EngineSpec, say: Say) -> ServingEngine:
    """Our engine over the models of ``spec``; its adapters are loaded by whoever asked for it."""
    say("Loading " + ", ".join(model.name for model in spec.models))
    from danlu.serve.engine.engine import Engine  # loads torch: the one place in this process where it is needed

    return Engine({model.name: model for model in spec.models}, spec.config)  # pyright: ignore


def run(path: Path, parent: int, build: Build = build_engine) -> int:
    """Serve one peer on the socket ``path``; returns the exit status once it is gone or has asked to stop."""
    _detach(parent)
    sock = accept_peer(path, os.getuid())
    outbox, reader = Outbox(sock), FrameReader(sock)
    outbox.put(hello())
    try:
        greeting, (_, _, payload) = _first_two(reader)
        check_hello(greeting)
        spec: EngineSpec = unpack(payload, EngineSpec)
        engine = _build(build, spec, outbox)
        if engine is None:
            return 1
        Host(engine, outbox).run(reader)
    except WireError as error:
        _LOG.error("The engine's process stops: %s.", error)
        outbox.flush(_FLUSH_S)
        return 1
    except EOFError:  # the parent is gone, or has said good-bye
        return 0
    return 0


def _first_two(reader: FrameReader) -> tuple[tuple[str, int, Raw], tuple[str, int, Raw]]:
    items: list[tuple[str, int, Raw]] = []
    while len(items) < 2:
        items += reader.read() or []
    return items[0], items[1]


def _build(build: Build, spec: EngineSpec, outbox: Outbox) -> ServingEngine | None:
    """The engine; None when it cannot be built, which the parent is told."""

    def say(text: str) -> None:
        outbox.put(pack("progress", 0, text))

    problem: DanluError
    try:
        return build(spec, say)
    except DanluError as error:
        problem = error
    except MemoryError:
        problem = ResourceError("There is not enough memory to load the model.", "Use --scheme int8, or a smaller one.")
    except Exception as error:  # the parent must hear of it whatever it is; the log has the details
        _LOG.exception("the engine could not be built")
        problem = ResourceError(f"The engine cannot start: {type(error).__name__}: {error}.", "Its log is above.")
    outbox.put(pack_event(0, problem))
    outbox.flush(_FLUSH_S)
    return None


def accept_peer(path: Path, user: int) -> socket.socket:
    """The connection of the first peer that belongs to ``user``; the socket's file (mode 0600) is gone after it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    try:
        listener.listen(1)
        while True:
            sock, _ = listener.accept()
            peer = peer_user(sock)
            if peer == user:
                return sock
            _LOG.warning("A peer of user %d was turned away.", peer)
            sock.close()
    finally:
        path.unlink(missing_ok=True)
        listener.close()


def peer_user(sock: socket.socket) -> int:
    """User id of the process at the other end, as the kernel knows it."""
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return user


def _detach(parent: int) -> None:
    """Leave the terminal's signals to the parent, die when it does, and before it when memory runs out."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(0)
    with contextlib.suppress(OSError):  # no Linux, or a sandbox that does not let us: then the kernel chooses
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    sys.setswitchinterval(_SWITCH_S)
    faulthandler.enable()


def main(arguments: Sequence[str], build: Build = build_engine) -> None:
    """Run, and leave without waiting for threads that may be inside a model."""
    logging.basicConfig(level=logging.WARNING, format="engine: %(levelname)s: %(message)s")
    path, parent = arguments
    try:
        status = run(Path(path), int(parent), build)
    except BaseException:  # an exit that skips the interpreter's own end must still say what happened
        _LOG.exception("the engine's process failed")
        status = 1
    logging.shutdown()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
