"""HTTP/1.1 for the load client: kept-alive connections that hand on what arrives, stamped, and do nothing more.

Every microsecond spent here is taken from a server on the same machine, so there is no task switch and no object for
each piece of an answer. Follows no redirect, uses no proxy and knows nothing of JSON.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

from danlu.core.errors import ConfigError

OnData = Callable[[float, bytes], None]
"""Called with ``time.perf_counter()`` and a piece of the body, cut anywhere."""


@dataclass(frozen=True)
class Answer:
    """How a server answered."""

    status: int
    body: bytes
    """Empty when it was handed on piece by piece."""


class Pool:
    """Connections to one server; each carries one request at a time and is used again."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        """``url`` with or without /v1; raises ConfigError when it is no address of a server."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            self._port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            parts, self._port = urlsplit(""), 0
        self._host = parts.hostname or ""
        if parts.scheme not in ("http", "https") or not self._host:
            raise ConfigError(f"{url!r} is no address of a server.", "Write for example http://127.0.0.1:8000.")
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        lines = {"host": parts.netloc.rpartition("@")[2], "accept": "*/*", **(headers or {})}
        if any(mark in f"{name}{value}" for name, value in lines.items() for mark in "\r\n"):
            raise ConfigError("A header has a line break.", "Remove it.")
        self._head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._idle: list[_Connection] = []

    async def ask(self, method: str, path: str, body: bytes = b"", on_data: OnData | None = None) -> Answer:
        """The answer to one request; pieces of an event stream go to ``on_data`` as they come. Raises OSError when the
        connection cannot be made or breaks."""
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._head}"
        if body:
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        message = f"{head}\r\n".encode("latin-1") + body
        while self._idle:
            connection = self._idle.pop()
            try:
                return await self._exchange(connection, message, on_data)
            except OSError:
                if not connection.is_silent:
                    raise  # it broke in the middle; had it said nothing, it was closed while idle
        return await self._exchange(await self._connect(), message, on_data)

    async def _exchange(self, connection: _Connection, message: bytes, on_data: OnData | None) -> Answer:
        try:
            answer = await connection.exchange(message, on_data)
        except BaseException:
            connection.close()
            raise
        if connection.is_reusable:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port, ssl=self._ssl)
        return connection

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()


class _Connection(asyncio.Protocol):
    """One connection, and the answer it is in the middle of."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._is_lost = False
        self._begin(None)

    def _begin(self, on_data: OnData | None) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._on_data = on_data
        self._body: list[bytes] = []
        self._is_stream = False
        self._now = 0.0
        self._done: asyncio.Future[Answer] | None = None
        self.is_silent = True
        self.is_reusable = False

    async def exchange(self, message: bytes, on_data: OnData | None) -> Answer:
        """Send a request and wait for the end of its answer."""
        self._begin(on_data)
        if self._is_lost or self._transport is None:
            raise ConnectionResetError("the server closed the connection")
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        return await self._done

    def close(self) -> None:
        """Close at once: an answer that is still being written is given up."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Of asyncio.Protocol."""
        self._now = time.perf_counter()
        self.is_silent = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"the answer is not HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio.Protocol."""
        self._is_lost = True
        self._fail(ConnectionResetError("the server closed the connection"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of httptools."""
        if name.lower() == b"content-type" and value.lower().startswith(b"text/event-stream"):
            self._is_stream = self._on_data is not None

    def on_body(self, body: bytes) -> None:
        """Of httptools."""
        if self._is_stream and self._on_data is not None:
            self._on_data(self._now, body)
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Of httptools."""
        if self._done is not None and not self._done.done():
            self.is_reusable = self._parser.should_keep_alive()
            self._done.set_result(Answer(self._parser.get_status_code(), b"".join(self._body)))

    def _fail(self, error: OSError) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)
