"""One HTTP request in the engine's hands: its tickets, and their events carried from the engine's thread to the loop.

Knows nothing of JSON or of the shape of answers. Whatever ends a flight (the last event, an error, its deadline, a
client that hangs up or does not read) cancels every ticket that is still open, at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from danlu.core.errors import DanluError, RequestError
from danlu.core.records import Delta, FinishReason, TokenLogprob, Usage
from danlu.serve.engine.request import Event, Reading, Reply, Request, ServingEngine, Ticket, WriteRequest
from danlu.serve.http.metrics import ModelMetrics

logger = logging.getLogger(__name__)

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_INLINE_CHARACTERS = 16_384
_BYTES_OF_EVENT = 256
"""What the envelope of one streamed piece takes, roughly."""


class ClientGone(Exception):
    """The client hung up: nobody waits for the answer."""


@dataclass
class Answer:
    """One answer, gathered from its deltas."""

    parts: list[str] = field(default_factory=list[str])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    token_bytes: dict[int, bytes] = field(default_factory=dict[int, bytes])
    finish_reason: FinishReason = "stop"

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.parts)

    def add(self, delta: Delta) -> None:
        """Take its next piece."""
        self.parts.append(delta.text)
        if delta.token_ids:
            self.token_ids += delta.token_ids
        if delta.logprobs:
            self.logprobs += delta.logprobs
        if delta.prompt_logprobs:
            self.prompt_logprobs = delta.prompt_logprobs
        if delta.token_bytes:
            self.token_bytes.update(delta.token_bytes)
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason


class Bridge:
    """Carries events from the engine's thread to the event loop, waking it once however many have piled up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pending: deque[tuple[Flight, int, Event]] = deque()
        self._is_scheduled = False

    def post(self, flight: Flight, index: int, event: Event) -> None:
        """Hand over one event; called from the engine's thread."""
        self._pending.append((flight, index, event))
        if not self._is_scheduled:
            self._is_scheduled = True  # cleared before the queue is drained, so no event is ever left behind
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                logger.debug("The event loop is closed; an event of the engine has nobody to go to.")

    def _deliver(self) -> None:
        self._is_scheduled = False
        while self._pending:
            flight, index, event = self._pending.popleft()
            flight.arrive(index, event)


class Flight:
    """``submit``, ``watch``, then ``one``, ``answers``, or ``next_batch`` until ``is_finished``; then ``close``."""

    def __init__(
        self,
        engine: ServingEngine,
        bridge: Bridge,
        metrics: ModelMetrics,
        *,
        timeout_s: float,
        ping_s: float,
        most_pending_bytes: int | None = None,
    ) -> None:
        """``most_pending_bytes`` is for answers that are streamed: what may wait to be taken."""
        self._engine = engine
        self._bridge = bridge
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._ping_s = ping_s
        self._most_pending_bytes = most_pending_bytes
        self._started = time.perf_counter()
        self._last_arrival: dict[int, float] = {}
        self._tickets: list[Ticket | None] = []
        self._fan = 1
        self._open: set[int] = set()
        self._counted: set[int] = set()
        self._arrived: list[tuple[int, Delta]] = []
        self._pending_bytes = 0
        self._gathered: list[Answer] = []
        self._result: Reading | Reply | None = None
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_idle = False
        self._timers: list[asyncio.TimerHandle] = []
        self._watcher: asyncio.Task[None] | None = None
        self.usage = Usage(prompt_tokens=0, completion_tokens=0)

    def close(self) -> None:
        """Cancel what is still open. Safe to call twice."""
        if self._watcher is not None:
            self._watcher.cancel()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._drop()

    def _drop(self) -> None:
        """Cancel the tickets that have answers open."""
        outcome = "abort" if self._failure is None or isinstance(self._failure, ClientGone) else "error"
        for number in {index // self._fan for index in self._open}:
            ticket = self._tickets[number]
            if ticket is not None:
                ticket.cancel()
        for _ in self._open:
            self._metrics.finished(outcome, time.perf_counter() - self._started)
        self._open.clear()

    async def submit(self, requests: Sequence[Request]) -> None:
        """Queue every request; all of them write equally many answers. One that is refused takes the others along."""
        loop = asyncio.get_running_loop()
        first = requests[0]
        self._fan = first.options.n if isinstance(first, WriteRequest) else 1
        self._tickets = [None] * len(requests)
        self._open = set(range(len(requests) * self._fan))
        self._gathered = [Answer() for _ in self._open]
        self._timers.append(loop.call_later(self._timeout_s, self._expire))
        if self._most_pending_bytes is not None:
            self._timers.append(loop.call_later(self._ping_s, self._tick))
        for number, request in enumerate(requests):
            on_event = self._listener(number)
            if _size(request) <= _INLINE_CHARACTERS:
                self._tickets[number] = self._engine.submit(request, on_event)
            else:  # a long prompt takes long to hand over: keep the loop free for others
                ticket = await asyncio.to_thread(self._engine.submit, request, on_event)
                self._tickets[number] = ticket
                if self._failure is not None:
                    ticket.cancel()
            if self._failure is not None:
                return

    def _listener(self, number: int) -> Callable[[Event], None]:
        return lambda event: self._bridge.post(self, number, event)

    def watch(self, receive: Receive) -> None:
        """End the flight when the client hangs up; the request's body must have been read."""

        async def wait_for_disconnect() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self._fail(ClientGone())

        self._watcher = asyncio.get_running_loop().create_task(wait_for_disconnect())

    def arrive(self, number: int, event: Event) -> None:
        """Take one event of a request; called on the loop."""
        if isinstance(event, Delta):
            index = number * self._fan + event.index
            if index not in self._open:
                return
            if event.finish_reason == "abort":
                self._fail(
                    RequestError("The server stopped before the answer was finished.", status=503, code="aborted")
                )
                return
            self._observe(index, event)
            if self._most_pending_bytes is None:
                self._gathered[index].add(event)
                if not self._open:
                    self._wake()
                return
            self._arrived.append((index, event))
            self._pending_bytes += len(event.text) + _BYTES_OF_EVENT
            if self._pending_bytes > self._most_pending_bytes:
                self._fail(
                    RequestError("The answer is read too slowly.", "Read the stream faster.", status=408, code="slow")
                )
            self._wake()
        elif isinstance(event, DanluError):
            self._fail(event)
        elif number in self._open:
            self._result = event
            self._open.discard(number)
            self._metrics.finished("stop", time.perf_counter() - self._started)
            self._wake()

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._drop()
        self._wake()

    def cancel(self) -> None:
        """End it because somebody said so."""
        self._fail(RequestError("The request was cancelled.", status=409, code="cancelled"))

    def _expire(self) -> None:
        self._fail(
            RequestError(
                f"The answer was not finished within {self._timeout_s:g} s.",
                "Ask for fewer tokens, or try when the server is less busy.",
                status=504,
                code="timeout",
            )
        )

    def _tick(self) -> None:
        """Let a silent stream say something; what was sent since the last tick puts it off."""
        self._timers[1] = asyncio.get_running_loop().call_later(self._ping_s, self._tick)
        if self._is_idle and self._waiter is not None:
            self._wake()
        self._is_idle = True

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _observe(self, index: int, delta: Delta) -> None:
        now = time.perf_counter()
        last = self._last_arrival.get(index)
        if last is None:
            self._metrics.time_to_first_token.observe(now - self._started)
        else:
            self._metrics.inter_token_latency.observe(now - last)
        self._last_arrival[index] = now
        if delta.finish_reason is None:
            return
        self._open.discard(index)
        self._metrics.finished(delta.finish_reason, now - self._started)
        number, usage = index // self._fan, delta.usage
        assert usage is not None
        is_new = number not in self._counted  # the answers to one prompt share it
        self._counted.add(number)
        self.usage = Usage(
            prompt_tokens=self.usage.prompt_tokens + usage.prompt_tokens * is_new,
            completion_tokens=self.usage.completion_tokens + usage.completion_tokens,
            cached_tokens=self.usage.cached_tokens + usage.cached_tokens * is_new,
        )

    @property
    def is_finished(self) -> bool:
        """Whether every answer is whole and was taken."""
        return not self._open and not self._arrived and self._failure is None

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def next_batch(self) -> list[tuple[int, Delta]]:
        """All deltas that have arrived, each with the index of its answer; empty when none came for ``ping_s``.

        Raises what ended the flight: a DanluError of the engine, RequestError 504 at the deadline, ClientGone.
        """
        if not self._arrived and self._failure is None and self._open:
            await self._wait()
        if not self._arrived and self._failure is not None:
            raise self._failure
        batch, self._arrived = self._arrived, []
        self._pending_bytes = 0
        if batch:
            self._is_idle = False
        return batch

    async def answers(self) -> list[Answer]:
        """Every answer, whole, in the order of the prompts, those to one prompt side by side."""
        await self._land()
        return self._gathered

    async def one(self) -> Reading | Reply:
        """The event of the only request, which does not write."""
        await self._land()
        assert self._result is not None
        return self._result

    async def _land(self) -> None:
        while self._open and self._failure is None:
            await self._wait()
        if self._failure is not None:
            raise self._failure


def _size(request: Request) -> int:
    """Characters and tokens of a request, roughly."""
    if isinstance(request, WriteRequest):
        prompt: Any = request.prompt
        if prompt and not isinstance(prompt, str) and isinstance(prompt[0], dict):
            return sum(len(message["content"]) for message in prompt)
        return len(prompt)
    texts = getattr(request, "texts", None) or (getattr(request, "prompt", None) or "",)
    return sum(len(text) for text in texts)
