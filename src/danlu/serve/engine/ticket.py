"""One request inside the engine: who hears of it, and whether anybody still wants it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from danlu.core.errors import RequestError
from danlu.serve.engine.request import Caller, Event, OnEvent

_LOG = logging.getLogger(__name__)


class EngineTicket:
    """Hears events until the last one; then it is closed and hears nothing."""

    def __init__(self, caller: Caller, timeout_s: float, on_event: OnEvent, on_cancel: Callable[[], None]) -> None:
        """``timeout_s`` is the limit of callers that set none; ``on_cancel`` wakes the engine."""
        self.caller = caller
        self.deadline = time.monotonic() + (timeout_s if caller.timeout_s is None else caller.timeout_s)
        """In the clock of ``time.monotonic``."""
        self.is_cancelled = False
        self.is_closed = False
        self._on_event = on_event
        self._on_cancel = on_cancel

    def cancel(self) -> None:
        """Drop the request, queued or running; it is swept before the next step. From any thread."""
        if not (self.is_cancelled or self.is_closed):
            self.is_cancelled = True
            self._on_cancel()

    def tell(self, event: Event) -> None:
        """Hand an event to the caller. A listener that raises breaks its own contract, not the others' answers."""
        if self.is_closed:
            return
        try:
            self._on_event(event)
        except Exception:  # code of others may fail in any way, and the loop that runs it serves everybody
            _LOG.exception("a listener of the engine failed")

    def close(self, event: Event) -> None:
        """Tell the last event."""
        self.tell(event)
        self.is_closed = True


def too_late() -> RequestError:
    """What a request hears whose time is over."""
    return RequestError(
        "The request was not finished in time.",
        "Ask for fewer tokens, allow more time, or try when the server is less busy.",
        status=504,
        code="timeout",
    )  # fmt: skip


def cancelled() -> RequestError:
    """What a cancelled request hears that has no text to end."""
    return RequestError("The request was cancelled.", status=499, code="cancelled")
