"""Bounds that uvicorn's httptools protocol lacks: on a request's head, its size and the time it may take to arrive;
on an answer, the time in which the client takes nothing of it.

Knows nothing of bodies: the app bounds those itself.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from danlu.core.errors import RequestError
from danlu.serve.http.replies.shared import encode, error_reply


def limited_protocol(max_header_bytes: int, read_timeout_s: float, write_timeout_s: float) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, closing connections whose request line and headers are too large or too slow, and those
    whose client has stopped reading."""

    class LimitedProtocol(HttpToolsProtocol):
        _head_bytes = 0
        _num_heads = 0
        _tail = b""
        _is_in_head = True
        _head_timer: asyncio.TimerHandle | None = None
        _write_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            super().connection_made(transport)
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            self._stop_write_timer()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._write_timer is None:
                self._write_timer = self.loop.call_later(write_timeout_s, self.transport.abort)

        def resume_writing(self) -> None:
            self._stop_write_timer()
            super().resume_writing()

        def _stop_write_timer(self) -> None:
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

        def data_received(self, data: bytes) -> None:
            if self._is_in_head and self._head_bytes + len(data) > max_header_bytes:
                end = (self._tail + data).find(b"\r\n\r\n")
                if end < 0 or self._head_bytes + end > max_header_bytes:
                    self._refuse()
                    return
            was_in_head, num_heads = self._is_in_head, self._num_heads
            super().data_received(data)
            if was_in_head and self._num_heads == num_heads:
                self._head_bytes += len(data)
                self._tail = data[-3:]

        def on_message_begin(self) -> None:
            super().on_message_begin()
            if self._head_timer is None:
                self._await_head()

        def on_headers_complete(self) -> None:
            self._is_in_head = False
            self._num_heads += 1
            self._stop_timer()
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._is_in_head, self._head_bytes, self._tail = True, 0, b""

        def _await_head(self) -> None:
            self._head_timer = self.loop.call_later(read_timeout_s, self.timeout_keep_alive_handler)

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _refuse(self) -> None:
            what = f"The request's headers are larger than {max_header_bytes:,} bytes."
            self._end(RequestError(what, "Send fewer.", status=431), "Request Header Fields Too Large")

        def send_400_response(self, msg: str) -> None:
            self._end(RequestError("This is no HTTP request.", "Send HTTP/1.1 in the clear."), "Bad Request")

        def _end(self, error: RequestError, reason: str) -> None:
            body = encode(error_reply(error))
            head = (
                f"HTTP/1.1 {error.status} {reason}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()

    return LimitedProtocol
