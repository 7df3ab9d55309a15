"""Runs the app: a port reserved before the long work, limits on headers and connections, and a drain at the end.

Knows nothing of routes (see app.py) or torch.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from danlu.core.errors import ResourceError
from danlu.serve.engine.request import ServingEngine
from danlu.serve.http.app import create_app
from danlu.serve.http.config import HttpConfig
from danlu.serve.http.limits import limited_protocol

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_KEEP_ALIVE_S = 60
_GRACE_S = 5.0


def reserve_port(host: str, port: int) -> socket.socket:
    """A socket bound to ``host``:``port`` for ``serve`` to listen on; ResourceError when it cannot be had.

    Call it before a long job, so that a port in use is known at once.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise _cannot_listen(host, port, error) from error
    return sock


def _cannot_listen(host: str, port: int, error: OSError) -> ResourceError:
    if error.errno == errno.EADDRINUSE:
        other = port + 1 if port < 65535 else port - 1
        return ResourceError(
            f"Port {port} on {host} is in use.", f"Stop the program that uses it, or set another port, such as {other}."
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ResourceError(f"Port {port} on {host} may not be used.", "Use a port of 1024 or higher.")
    return ResourceError(f"{host} is no address of this machine: {error}.", "Use 127.0.0.1, or 0.0.0.0 for all.")


def serve(
    engine: ServingEngine, config: HttpConfig, on_ready: Callable[[str], None], sock: socket.socket | None = None
) -> None:
    """Serve ``engine`` until SIGINT or SIGTERM, then drain and stop it. ``on_ready`` gets the URL.

    ``sock`` is what ``reserve_port`` gave; without it the port is taken now.
    """
    if not config.is_loopback and config.api_key is None and config.api_keys_file is None:
        logger.warning("The server is open to the network at %s without an api_key.", config.host)
    Server(engine, config, on_ready).run_on(sock or reserve_port(config.host, config.port))


class Server(uvicorn.Server):
    """uvicorn with our limits. Unlike uvicorn it returns after a signal, and drains the engine before it does."""

    def __init__(self, engine: ServingEngine, config: HttpConfig, on_ready: Callable[[str], None]) -> None:
        settings = uvicorn.Config(
            create_app(engine, config),
            loop="auto",
            http=limited_protocol(config.max_header_bytes, config.read_timeout_s, config.write_timeout_s),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=config.max_connections,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(config.drain_s + _GRACE_S),
        )
        super().__init__(settings)
        self._engine = engine
        self._http = config
        self._on_ready = on_ready

    def run_on(self, sock: socket.socket) -> None:
        """Listen on a bound socket and serve until told to stop; the engine is stopped in every case."""
        host, port = sock.getsockname()[:2]
        try:
            sock.listen(self.config.backlog)
        except OSError as error:
            sock.close()
            raise _cannot_listen(host, port, error) from error
        try:
            self.run(sockets=[sock])
        finally:
            sock.close()
            self._engine.stop(0.0)

    def ask_to_stop(self) -> None:
        """Drain and return from ``run_on``; from any thread. Asking twice drops what still runs."""
        if self.should_exit:
            threading.Thread(target=self._engine.stop, args=(0.0,), name="danlu-stop", daemon=True).start()
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, then tell the URL."""
        await super().startup(sockets)
        assert sockets is not None
        self._on_ready(_url(sockets[0]))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing more, let running answers finish within ``drain_s``, end the others with an error."""
        if count := len(self.server_state.tasks):
            logger.warning(
                "Stopping: requests still answered: %d, for at most %g s. Ctrl-C drops them.", count, self._http.drain_s
            )
        draining = asyncio.create_task(asyncio.to_thread(self._engine.stop, self._http.drain_s))
        await super().shutdown(sockets)
        await draining

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGINT and SIGTERM, and put the old handlers back without raising the signal again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second drops what still runs."""
        self.ask_to_stop()


def _url(sock: socket.socket) -> str:
    address, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, str(address))
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
