"""How two processes talk about one engine: msgpack items in frames with a length before them.

An item is (operation, id of the request, payload). Operations are the class names of requests and events, and a few
words for the life of the process. Classes go field by field with their own types, so that what arrives is what was
sent; nothing that arrives can name code to run. Knows nothing of sockets' addresses, processes or torch.
"""

from __future__ import annotations

import hashlib
import select
import socket
import time
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

import msgspec
from msgspec import Raw, Struct, msgpack

from danlu.core import errors
from danlu.core.errors import DanluError, RequestError
from danlu.core.records import Delta, GenerateOptions, TokenLogprob, Usage
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.request import (
    AdapterRequest,
    Caller,
    DetokenizeRequest,
    EngineStatus,
    Event,
    Grammar,
    ModelStatus,
    Reading,
    ReadRequest,
    Reply,
    Request,
    ServedModel,
    TokenizeRequest,
    TokenizerRequest,
    WriteRequest,
)
from danlu.serve.engine.spec import EngineSpec, ModelSpec

MAX_FRAME_BYTES = 64 << 20
"""Largest frame that is sent or taken."""
_PROTOCOL = 1
_LENGTH_BYTES = 4
_HEAD_BYTES = 5
"""Of the array around a frame's items."""

_DAMAGE = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""What decoding bytes raises that are not what was promised."""

Item = tuple[str, int, Raw]
"""Operation, id of the request (0 for none), payload."""


class WireError(Exception):
    """The other end broke the protocol; nothing more can be read from it. Never reaches a person."""


_REQUESTS: dict[str, type[Request]] = {
    kind.__name__: kind
    for kind in (WriteRequest, ReadRequest, TokenizeRequest, DetokenizeRequest, TokenizerRequest, AdapterRequest)
}
_OPEN: dict[tuple[type, str], Any] = {
    (WriteRequest, "prompt"): str | list[Any],
    (TokenizeRequest, "prompt"): str | list[Any],
    (ReadRequest, "texts"): tuple[str | list[Any], ...],
}
"""Fields whose types are more than one kind of list, which a decoder cannot tell apart by itself."""


class _Failure(Struct, array_like=True):
    """An error."""

    kind: str
    message: str
    hint: str
    status: int = 500
    code: str | None = None
    param: str | None = None
    retry_after_s: int = 1


class Hello(Struct):
    """The first item of each side."""

    protocol: int
    schema: str


def _to_builtin(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(cast("Mapping[Any, Any]", value))
    if isinstance(value, Sequence):
        return list(cast("Sequence[Any]", value))
    raise NotImplementedError(f"{type(value).__name__} is not sent between processes")


_ENCODER = msgpack.Encoder(enc_hook=_to_builtin)
_ITEMS = msgpack.Decoder(list[Item])
_FIELDS = msgpack.Decoder(dict[str, Raw])
_DECODERS: dict[type, dict[str, msgpack.Decoder[Any]]] = {}
_EVENTS: dict[str, msgpack.Decoder[Any]] = {
    "Delta": msgpack.Decoder(Delta),
    "Reading": msgpack.Decoder(Reading),
    "Reply": msgpack.Decoder(Reply),
    "error": msgpack.Decoder(_Failure),
}


def pack(operation: str, request_id: int, payload: Any) -> bytes:
    """One item; TypeError when something in it is no plain data."""
    try:
        return _ENCODER.encode((operation, request_id, payload))
    except (NotImplementedError, OverflowError, RecursionError, UnicodeError, msgspec.MsgspecError) as error:
        raise TypeError(str(error)) from error


def unpack(payload: Raw, kind: Any) -> Any:
    """The value of a payload; WireError when it is not of ``kind``."""
    try:
        return msgpack.decode(payload, type=kind)
    except _DAMAGE as error:
        raise WireError(f"a payload is not as promised: {error}") from error


# requests


def pack_request(request_id: int, request: Request) -> bytes:
    """The item of a request."""
    return pack(type(request).__name__, request_id, request)


def is_request(operation: str) -> bool:
    """Whether an item is a request."""
    return operation in _REQUESTS


def unpack_request(operation: str, payload: Raw) -> Request:
    """The request of an item; a tuple that was sent where the types say list or sequence comes as a list."""
    kind = _REQUESTS[operation]
    decoders = _DECODERS.get(kind) or _DECODERS.setdefault(kind, _decoders(kind))
    try:
        values = {name: decoders[name].decode(raw) for name, raw in _FIELDS.decode(payload).items()}
        if "texts" in values:
            values["texts"] = tuple(_text(text) for text in values["texts"])
        return kind(**values)
    except (KeyError, TypeError, *_DAMAGE) as error:
        raise WireError(f"a {operation} is not as promised: {error}") from error


def _decoders(kind: type) -> dict[str, msgpack.Decoder[Any]]:
    hints = typing.get_type_hints(kind)
    return {one.name: msgpack.Decoder(_OPEN.get((kind, one.name), hints[one.name])) for one in fields(kind)}


def _text(text: str | list[Any]) -> Any:
    """Two strings are a pair; a list of numbers stays one."""
    is_pair = isinstance(text, list) and len(text) == 2 and isinstance(text[0], str)
    return tuple(text) if is_pair else text


class Outstanding:
    """What a request still waits for: both processes must agree on which event is its last."""

    def __init__(self, request: Request) -> None:
        self._answers = request.options.n if isinstance(request, WriteRequest) else 1
        self.is_cancelled = False

    def is_last(self, event: Event) -> bool:
        """Whether nothing follows ``event``; a cancelled request is over with the first answer that is dropped."""
        if not isinstance(event, Delta):
            return True
        if event.finish_reason is None:
            return False
        self._answers -= 1
        return self._answers <= 0 or (self.is_cancelled and event.finish_reason == "abort")


# events


def pack_event(request_id: int, event: Event) -> bytes:
    """The item of an event; one that holds anything but plain data becomes an error."""
    if isinstance(event, DanluError):
        return pack("error", request_id, _failure(event))
    try:
        return pack(type(event).__name__, request_id, event)
    except TypeError as error:
        problem = RequestError(f"An answer could not be sent: {error}.", "Report it.", status=500, code="internal")
        return pack("error", request_id, _failure(problem))


def is_event(operation: str) -> bool:
    """Whether an item is an event."""
    return operation in _EVENTS


def unpack_event(operation: str, payload: Raw) -> Event:
    """The event of an item."""
    try:
        event = _EVENTS[operation].decode(payload)
    except _DAMAGE as error:
        raise WireError(f"a {operation} is not as promised: {error}") from error
    return _error(event) if isinstance(event, _Failure) else event


def _failure(error: DanluError) -> _Failure:
    known = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    failure = _Failure(known, error.message, error.hint)
    if isinstance(error, RequestError):
        failure.status, failure.code, failure.param = error.status, error.code, error.param
        failure.retry_after_s = getattr(error, "retry_after_s", 1)
    return failure


def _error(failure: _Failure) -> DanluError:
    kind = getattr(errors, failure.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, DanluError)):
        raise WireError(f"{failure.kind} is no error of ours")
    error = kind(failure.message, failure.hint)
    if isinstance(error, RequestError):
        error.status, error.code, error.param = failure.status, failure.code, failure.param
        if hasattr(error, "retry_after_s"):
            error.retry_after_s = failure.retry_after_s  # pyright: ignore[reportAttributeAccessIssue]
    return error


# the two ends


def hello() -> bytes:
    """The first item that each side sends."""
    return pack("hello", 0, Hello(_PROTOCOL, _schema()))


def check_hello(item: Item) -> None:
    """WireError unless the other side speaks exactly as we do: danlu may have been upgraded under a running server."""
    operation, _, payload = item
    if operation != "hello":
        raise WireError(f"the other side begins with {operation!r} instead of a greeting")
    theirs: Hello = unpack(payload, Hello)
    if (theirs.protocol, theirs.schema) != (_PROTOCOL, _schema()):
        raise WireError(f"the other side is another version of danlu: {theirs.protocol}/{theirs.schema[:8]}")


def _schema() -> str:
    """A hash of every field of everything that is sent."""
    kinds: list[type] = [
        *_REQUESTS.values(), Caller, Grammar, GenerateOptions, Delta, TokenLogprob, Usage, Reading, Reply, ServedModel,
        ModelStatus, EngineStatus, EngineSpec, ModelSpec, EngineConfig,
    ]  # fmt: skip
    text = repr([(kind.__name__, [(one.name, str(one.type)) for one in fields(kind)]) for kind in kinds])
    return hashlib.sha256(text.encode()).hexdigest()


def frames(items: Sequence[bytes], max_bytes: int) -> list[bytes]:
    """``items`` in as few frames as ``max_bytes`` of each allows; none of them may be larger by itself."""
    done: list[bytes] = []
    batch: list[bytes] = []
    size = _HEAD_BYTES
    for item in items:
        if batch and size + len(item) > max_bytes:
            done.append(_frame(batch, size))
            batch, size = [], _HEAD_BYTES
        batch.append(item)
        size += len(item)
    return [*done, _frame(batch, size)] if batch else done


def largest_item(max_bytes: int) -> int:
    """Bytes of the largest item that fits into a frame."""
    return max_bytes - _HEAD_BYTES


def _frame(items: Sequence[bytes], size: int) -> bytes:
    return b"".join([size.to_bytes(_LENGTH_BYTES, "big"), b"\xdd", len(items).to_bytes(4, "big"), *items])


class FrameReader:
    """Reads frames from a socket; one thread only."""

    def __init__(self, sock: socket.socket, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._sock = sock
        self._max_bytes = max_bytes
        self._bytes = bytearray()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def read(self, timeout_s: float | None = None) -> list[Item] | None:
        """Items of the next frame; None after ``timeout_s`` without one. EOFError when the other side is gone."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            items = self._next()
            if items is not None:
                return items
            left_ms = None if until is None else max(0.0, until - time.monotonic()) * 1000
            if not self._poll.poll(left_ms):
                return None
            try:
                block = self._sock.recv(1 << 18)
            except ConnectionError as error:
                raise EOFError("the other side is gone") from error
            if not block:
                raise EOFError("the other side is gone")
            self._bytes += block

    def _next(self) -> list[Item] | None:
        if len(self._bytes) < _LENGTH_BYTES:
            return None
        size = int.from_bytes(self._bytes[:_LENGTH_BYTES], "big")
        if size > self._max_bytes:
            raise WireError(f"a frame of {size} bytes is larger than {self._max_bytes}")
        end = _LENGTH_BYTES + size
        if len(self._bytes) < end:
            return None
        content = bytes(memoryview(self._bytes)[_LENGTH_BYTES:end])
        del self._bytes[:end]
        try:
            return _ITEMS.decode(content)
        except _DAMAGE as error:
            raise WireError(f"a frame is not as promised: {error}") from error
