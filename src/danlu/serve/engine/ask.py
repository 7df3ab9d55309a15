"""Ask an engine something that needs no pass of a model, and wait for the answer.

Works over any ``ServingEngine``, in this process or in another.
"""

from __future__ import annotations

import queue

from danlu.core.errors import DanluError
from danlu.serve.engine.request import (
    AdapterRequest,
    DetokenizeRequest,
    Event,
    Reply,
    ServingEngine,
    TokenizeRequest,
    TokenizerRequest,
)


def reply(
    engine: ServingEngine, request: TokenizeRequest | DetokenizeRequest | TokenizerRequest | AdapterRequest
) -> Reply:
    """The answer; raises the error that the engine gives instead."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    ticket = engine.submit(request, events.put)
    try:
        event = events.get()
    finally:
        ticket.cancel()
    if isinstance(event, DanluError):
        raise event
    assert isinstance(event, Reply)
    return event
