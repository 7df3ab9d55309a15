"""What every route needs: the body, the model that is meant, who asks, and an answer carried from the engine.

Knows nothing of any one route, sockets or torch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from danlu.core.errors import DanluError, RequestError, nearest
from danlu.core.records import Delta
from danlu.serve.engine.request import (
    Ability,
    Caller,
    DetokenizeRequest,
    Reading,
    Reply,
    Request,
    ServedModel,
    ServingEngine,
    WriteRequest,
)
from danlu.serve.http.config import HttpConfig
from danlu.serve.http.flight import Bridge, ClientGone, Flight
from danlu.serve.http.guard import AsgiSend, Receive, Scope, internal_error
from danlu.serve.http.keys import Holder
from danlu.serve.http.metrics import Metrics
from danlu.serve.http.protocol.parse import parse
from danlu.serve.http.protocol.sampling import Asked
from danlu.serve.http.replies.shared import PING, Writer
from danlu.serve.http.stored import ResponseStore

logger = logging.getLogger(__name__)

T = TypeVar("T")
_DOES: dict[Ability, str] = {
    "write": "write text",
    "embed": "embed",
    "classify": "classify",
    "tag": "tag",
    "score": "score pairs",
}


class Service:
    """One engine, and what the HTTP side knows about it."""

    def __init__(self, engine: ServingEngine, config: HttpConfig, metrics: Metrics) -> None:
        self.engine = engine
        self.config = config
        self.metrics = metrics
        self.stored = ResponseStore(config.max_stored, config.max_stored_bytes)

    @cached_property
    def _bridge(self) -> Bridge:
        return Bridge(asyncio.get_running_loop())

    async def parse(self, request: HttpRequest, kind: type[T]) -> T:
        """The request's body as a struct."""
        return parse(kind, await self.body(request))

    async def body(self, request: HttpRequest) -> bytes:
        """The request's body, within its limits of size and time."""
        most = self.config.max_body_bytes
        too_large = RequestError(
            f"The body is larger than {most:,} bytes.", "Send a shorter prompt.", status=413, code="request_too_large"
        )
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.config.read_timeout_s):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise RequestError(
                f"The body had not arrived after {self.config.read_timeout_s:g} s.", "Send it faster.", status=408
            ) from None
        return bytes(body)

    def find(self, name: str | None, *abilities: Ability) -> ServedModel:
        """The model of that name, or the only one that can do what is asked when no name is given.

        RequestError 404 for a name that is not served, 400 for a model that cannot do any of ``abilities``.
        """
        served = self.engine.models()
        if name is None:
            able = [m for m in served if m.base is None and (not abilities or m.abilities & set(abilities))]
            if len(able) == 1:
                return able[0]
            known = ", ".join(m.name for m in able or served)
            raise RequestError("model is missing.", f"Name one of those served: {known}.", param="model")
        model = next((m for m in served if m.name == name), None)
        if model is None:
            raise RequestError(
                f"There is no model {name[:100]!r}.",
                f"This server has '{served[0].name}'." if len(served) == 1 else nearest(name, [m.name for m in served]),
                status=404,
                code="model_not_found",
                param="model",
            )
        if abilities and not model.abilities & set(abilities):
            can = ", ".join(_DOES[ability] for ability in sorted(model.abilities)) or "nothing"
            others = [m.name for m in served if m.abilities & set(abilities)]
            raise RequestError(
                f"The model '{model.name}' cannot {_DOES[abilities[0]]}; it can {can}.",
                f"Ask one of: {', '.join(others)}." if others else "No model of this server can.",
                code="unsupported_model",
                param="model",
            )
        return model

    def caller(self, request: HttpRequest, asked: Asked | None = None) -> Caller:
        """Who asks: the tenant follows from the key, priority and timeout from the request."""
        most = self.config.request_timeout_s
        timeout_s = most if asked is None or asked.timeout is None else min(asked.timeout, most)
        priority = 0 if asked is None or asked.priority is None else asked.priority
        return Caller(tenant=holder(request).tenant, priority=priority, timeout_s=timeout_s)

    async def ask(self, request: HttpRequest, asked: Request, caller: Caller, model: ServedModel) -> Reading | Reply:
        """The only event of a request that does not write."""
        with ExitStack() as stack:
            flight = self._flight(model, caller, is_stream=False)
            stack.callback(flight.close)
            await flight.submit([asked])
            flight.watch(request.receive)
            return await flight.one()

    async def read(self, request: HttpRequest, asked: Request, caller: Caller, model: ServedModel) -> Reading:
        """What a model read."""
        reading = await self.ask(request, asked, caller, model)
        assert isinstance(reading, Reading)
        return reading

    async def write(
        self,
        request: HttpRequest,
        asked: Sequence[WriteRequest],
        model: ServedModel,
        writer: Writer,
        *,
        is_stream: bool,
    ) -> Response | EventStream:
        """The answers; a stream begins only with the engine's first sign, so an early error still has its status."""
        with ExitStack() as stack:
            flight = self._flight(model, asked[0].caller, is_stream=is_stream)
            stack.callback(flight.close)
            self.check_answers(asked)
            await flight.submit(asked)
            flight.watch(request.receive)
            if not is_stream:
                return json_response(writer.whole(await flight.answers(), flight.usage))
            first = await flight.next_batch()
            stack.pop_all()  # from here on the stream closes the flight
            return EventStream(flight, writer, first)

    def check_answers(self, asked: Sequence[WriteRequest]) -> None:
        """Refuse more answers than one request may have."""
        num_answers = sum(max(write.options.n, write.options.num_beams) for write in asked)
        if num_answers > self.config.max_answers:
            raise RequestError(
                f"{num_answers} answers were asked for, prompts times n or beams.",
                f"Ask for at most {self.config.max_answers} at a time.",
                param="n",
            )

    async def detokenize(self, request: HttpRequest, model: ServedModel, ids: Sequence[int], caller: Caller) -> str:
        """The text of ids."""
        reply = await self.ask(request, DetokenizeRequest(model=model.name, ids=tuple(ids)), caller, model)
        assert isinstance(reply, Reply)
        return str(reply.value["text"])

    def _flight(self, model: ServedModel, caller: Caller, *, is_stream: bool) -> Flight:
        return Flight(
            self.engine,
            self._bridge,
            self.metrics.of(model.name),
            timeout_s=caller.timeout_s or self.config.request_timeout_s,
            ping_s=self.config.ping_s,
            most_pending_bytes=self.config.max_pending_bytes if is_stream else None,
        )


def holder(request: HttpRequest) -> Holder:
    """Who holds the request's key."""
    return request.scope["danlu.holder"]


def json_response(body: bytes, status: int = 200) -> Response:
    """A JSON body."""
    return Response(body, status, {"cache-control": "no-store"}, "application/json")


def public(error: DanluError, request_id: str) -> RequestError:
    """What the client may know of ``error``: a request's own faults; anything else stays in the log."""
    if isinstance(error, RequestError):
        return error
    logger.error("%s: the engine failed: %s", request_id, error, exc_info=error)
    return internal_error(request_id)


class EventStream:
    """A response of server-sent events. An answer that breaks ends with an error event and never says [DONE]."""

    def __init__(self, flight: Flight, writer: Writer, first: list[tuple[int, Delta]]) -> None:
        self._flight = flight
        self._writer = writer
        self._first = first

    def cancel(self) -> None:
        """End it; on the event loop."""
        self._flight.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: AsgiSend) -> None:
        """Send pieces as they come, several in one write when several have come; comments while nothing does."""
        flight, writer = self._flight, self._writer
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        headers.append((b"x-accel-buffering", b"no"))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            events = writer.open() + self._write(self._first)
            while not flight.is_finished:
                if events:
                    await send({"type": "http.response.body", "body": events, "more_body": True})
                batch = await flight.next_batch()
                events = self._write(batch) if batch else PING
            events += writer.close(flight.usage)
        except ClientGone:
            return
        except DanluError as error:
            events = writer.broken(public(error, scope["danlu.request_id"]))
        finally:
            flight.close()
        await send({"type": "http.response.body", "body": events, "more_body": False})

    def _write(self, batch: list[tuple[int, Delta]]) -> bytes:
        if len(batch) == 1:
            return self._writer.piece(*batch[0])
        return b"".join([self._writer.piece(index, delta) for index, delta in batch])
