"""Passes requests from a socket to an engine, and its events back: the working half of the engine's process.

Requests are handed over by a few threads, so that a long prompt being tokenised holds up neither the others nor any
cancel. Knows nothing of processes or torch.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

from msgspec import Raw

from danlu.core.errors import DanluError, RequestError, UnavailableError
from danlu.serve.engine.outbox import Outbox
from danlu.serve.engine.request import AdapterRequest, Event, ServedModel, ServingEngine, Ticket
from danlu.serve.engine.wire import (
    FrameReader,
    Outstanding,
    WireError,
    is_request,
    pack,
    pack_event,
    unpack,
    unpack_request,
)

_LOG = logging.getLogger(__name__)
_NUM_SUBMITTERS = 4
_STATUS_S = 0.2
_IDLE_STATUS_S = 1.0
_FLUSH_S = 10.0


class _Entry:
    """One request inside this process."""

    def __init__(self) -> None:
        self.ticket: Ticket | None = None
        self.outstanding: Outstanding | None = None
        self.is_cancelled = False


class Host:
    """Passes requests from the socket to an engine, and its events back."""

    def __init__(self, engine: ServingEngine, outbox: Outbox) -> None:
        self._engine = engine
        self._outbox = outbox
        self._open: dict[int, _Entry] = {}
        self._lock = threading.Lock()
        self._submitters = ThreadPoolExecutor(_NUM_SUBMITTERS, "engine-submit")
        self._loaders = ThreadPoolExecutor(1, "engine-adapters")
        self._has_news = threading.Event()
        self._models: tuple[ServedModel, ...] = ()
        self._models_lock = threading.Lock()

    def run(self, reader: FrameReader) -> None:
        """Until the peer is gone (EOFError) or breaks the protocol (WireError)."""
        self._tell_models()
        self._outbox.put(pack("status", 0, self._engine.status()), is_urgent=True)
        self._outbox.put(pack("ready", 0, None), is_urgent=True)
        threading.Thread(target=self._tell_status, name="engine-status", daemon=True).start()
        while True:
            for operation, request_id, payload in reader.read() or ():
                self._take(operation, request_id, payload)

    def _take(self, operation: str, request_id: int, payload: Raw) -> None:
        if is_request(operation):
            entry = _Entry()
            with self._lock:
                is_first = not self._open
                self._open[request_id] = entry
            if is_first:
                self._has_news.set()
            pool = self._loaders if operation == AdapterRequest.__name__ else self._submitters
            pool.submit(self._submit, entry, operation, request_id, payload)
        elif operation == "cancel":
            self._cancel(request_id)
        elif operation == "stop":
            drain_s: float = unpack(payload, float)
            threading.Thread(target=self._stop, args=(drain_s,), name="engine-stop", daemon=True).start()
        else:
            raise WireError(f"{operation!r} is not known")

    def _submit(self, entry: _Entry, operation: str, request_id: int, payload: Raw) -> None:
        try:
            request = unpack_request(operation, payload)
            is_adapter = isinstance(request, AdapterRequest)
            with self._lock:
                entry.outstanding = Outstanding(request)
                entry.outstanding.is_cancelled = entry.is_cancelled
            if entry.is_cancelled:
                self._hear(
                    entry, request_id, RequestError("The request was cancelled.", status=499, code="cancelled"), False
                )
                return
            ticket = self._engine.submit(request, lambda event: self._hear(entry, request_id, event, is_adapter))
            with self._lock:
                entry.ticket = ticket
            if entry.is_cancelled:  # while it was being submitted
                ticket.cancel()
        except Exception as error:  # whatever fails here is one request's; its caller must hear of it
            _LOG.exception("a request could not be submitted")
            problem = error if isinstance(error, DanluError) else RequestError("The engine failed.", status=500)
            self._send(request_id, problem)

    def _cancel(self, request_id: int) -> None:
        with self._lock:
            entry = self._open.get(request_id)
            if entry is None:
                return
            entry.is_cancelled = True
            if entry.outstanding is not None:
                entry.outstanding.is_cancelled = True
            ticket = entry.ticket
        if ticket is not None:
            ticket.cancel()

    def _hear(self, entry: _Entry, request_id: int, event: Event, is_adapter: bool) -> None:
        """An event of the engine, in its thread."""
        if is_adapter:  # what is served may have changed: that is told first, and not from the engine's thread
            self._loaders.submit(self._tell_adapter, request_id, event)
            return
        assert entry.outstanding is not None
        if request_id not in self._open:
            return  # dropped, because nobody read its events
        item = pack_event(request_id, event)
        if entry.outstanding.is_last(event):
            self._forget(request_id)
        if not self._outbox.put(item):
            self._drop(entry, request_id, len(item))

    def _drop(self, entry: _Entry, request_id: int, size_bytes: int) -> None:
        """End a request whose events cannot be sent, rather than keep them."""
        if size_bytes > self._outbox.max_item_bytes:
            problem = RequestError(
                f"The answer is {size_bytes} bytes, more than can be sent at once.", "Ask for fewer texts at a time.",
                status=413,
            )  # fmt: skip
        else:
            problem = UnavailableError("The server reads its engine's answers too slowly.", "Try again soon.")
        self._cancel(request_id)
        self._send(request_id, problem)

    def _send(self, request_id: int, event: Event) -> None:
        self._forget(request_id)
        self._outbox.put(pack_event(request_id, event), is_urgent=True)

    def _forget(self, request_id: int) -> None:
        with self._lock:
            self._open.pop(request_id, None)
            is_idle = not self._open
        if is_idle:
            self._has_news.set()

    def _tell_adapter(self, request_id: int, event: Event) -> None:
        self._tell_models()
        self._send(request_id, event)

    def _tell_models(self) -> None:
        with self._models_lock:
            models = tuple(self._engine.models())
            if models != self._models:
                self._models = models
                self._outbox.put(pack("models", 0, models), is_urgent=True)

    def _tell_status(self) -> None:
        """Numbers and a sign of life: often while there is work, at once when work begins and when all is done."""
        while True:
            self._has_news.wait(_STATUS_S if self._open else _IDLE_STATUS_S)
            self._has_news.clear()
            self._tell_models()
            self._outbox.put(pack("status", 0, self._engine.status()), is_urgent=True)

    def _stop(self, drain_s: float) -> None:
        self._engine.stop(drain_s)
        self._outbox.put(pack("stopped", 0, None), is_urgent=True)
        self._outbox.flush(_FLUSH_S)
