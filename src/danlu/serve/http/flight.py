"""One HTTP request in the engine's hands: its tickets, and their deltas carried from the engine's thread to the loop.

Knows nothing of JSON or of the shape of answers. Whatever ends a flight (the last delta, an error, its deadline, a
client that hangs up) cancels every ticket that is still open.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from danlu.core.errors import DanluError, RequestError
from danlu.core.records import Completion, Delta, GenerateOptions, Prompt, Usage
from danlu.serve.engine.request import ServingEngine, Ticket
from danlu.serve.http.metrics import Metrics

logger = logging.getLogger(__name__)

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_INLINE_CHARACTERS = 16_384


class ClientGone(Exception):
    """The client hung up: nobody waits for the answer."""


class Bridge:
    """Carries events from the engine's thread to the event loop, waking it once however many have piled up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pending: deque[tuple[Flight, int, Delta | DanluError]] = deque()
        self._is_scheduled = False

    def post(self, flight: Flight, index: int, event: Delta | DanluError) -> None:
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
    """``submit``, ``watch``, then take ``next_batch`` until ``is_finished``; always ``close`` at the end."""

    def __init__(self, engine: ServingEngine, bridge: Bridge, metrics: Metrics, timeout_s: float) -> None:
        self._engine = engine
        self._bridge = bridge
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._started = time.perf_counter()
        self._last_arrival: dict[int, float] = {}
        self._tickets: list[Ticket] = []
        self._open: set[int] = set()
        self._arrived: list[tuple[int, Delta]] = []
        self._failure: Exception | None = None
        self._wake = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self.usage = Usage(prompt_tokens=0, completion_tokens=0)

    def close(self) -> None:
        """Cancel what is still open. Safe to call twice."""
        if self._watcher is not None:
            self._watcher.cancel()
        for index in self._open:
            self._tickets[index].cancel()
            self._metrics.finished("abort", time.perf_counter() - self._started)
        self._open.clear()

    async def submit(self, prompts: Sequence[Prompt | Sequence[int]], options: GenerateOptions) -> None:
        """Queue every prompt, or none: where one is refused, those before it are cancelled on leaving."""
        for index, prompt in enumerate(prompts):
            on_event = self._listener(index)
            if _size(prompt) <= _INLINE_CHARACTERS:
                ticket = self._engine.submit(prompt, options, on_event)
            else:  # a long prompt takes long to tokenise: keep the loop free for others
                ticket = await asyncio.to_thread(self._engine.submit, prompt, options, on_event)
            self._tickets.append(ticket)
            self._open.add(index)

    def _listener(self, index: int) -> Callable[[Delta | DanluError], None]:
        return lambda event: self._bridge.post(self, index, event)

    def watch(self, receive: Receive) -> None:
        """End the flight when the client hangs up; the request's body must have been read."""

        async def wait_for_disconnect() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self._fail(ClientGone())

        self._watcher = asyncio.get_running_loop().create_task(wait_for_disconnect())

    def arrive(self, index: int, event: Delta | DanluError) -> None:
        """Take one event; called on the loop."""
        if index not in self._open and index < len(self._tickets):
            return
        if isinstance(event, DanluError):
            self._fail(event)
        elif event.finish_reason == "abort":
            self._fail(RequestError("The server stopped before the answer was finished.", status=503, code="aborted"))
        else:
            self._observe(index, event)
            self._arrived.append((index, event))
            self._wake.set()

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._wake.set()

    def _observe(self, index: int, delta: Delta) -> None:
        now = time.perf_counter()
        last = self._last_arrival.get(index)
        if last is None:
            self._metrics.time_to_first_token.observe(now - self._started)
        else:
            self._metrics.inter_token_latency.observe(now - last)
        self._last_arrival[index] = now

    @property
    def is_finished(self) -> bool:
        """Whether every answer is whole."""
        return not self._open

    async def next_batch(self, wait_s: float) -> list[tuple[int, Delta]]:
        """All deltas that have arrived, each with the index of its prompt; empty when none came within ``wait_s``.

        Raises what ended the flight: a DanluError of the engine, RequestError 504 at the deadline, ClientGone.
        """
        if not self._arrived and self._failure is None:
            left_s = self._started + self._timeout_s - time.perf_counter()
            try:
                async with asyncio.timeout(max(0.0, min(wait_s, left_s))):
                    await self._wake.wait()
            except TimeoutError:
                if left_s <= wait_s:
                    raise RequestError(
                        f"The answer was not finished within {self._timeout_s:g} s.",
                        "Ask for fewer tokens, or try when the server is less busy.",
                        status=504,
                        code="timeout",
                    ) from None
                return []
        self._wake.clear()
        if not self._arrived and self._failure is not None:
            raise self._failure
        batch, self._arrived = self._arrived, []
        for index, delta in batch:
            if delta.finish_reason is not None:
                self._land(index, delta)
        return batch

    def _land(self, index: int, delta: Delta) -> None:
        assert delta.finish_reason is not None
        assert delta.usage is not None
        self._open.discard(index)
        self._metrics.finished(delta.finish_reason, time.perf_counter() - self._started)
        self.usage = Usage(
            prompt_tokens=self.usage.prompt_tokens + delta.usage.prompt_tokens,
            completion_tokens=self.usage.completion_tokens + delta.usage.completion_tokens,
        )

    async def completions(self) -> list[Completion]:
        """Every answer, whole, in the order of the prompts."""
        texts: list[list[str]] = [[] for _ in self._tickets]
        last: dict[int, Delta] = {}
        while not self.is_finished:
            for index, delta in await self.next_batch(self._timeout_s):
                texts[index].append(delta.text)
                last[index] = delta
        answers: list[Completion] = []
        for index, parts in enumerate(texts):
            finish_reason, usage = last[index].finish_reason, last[index].usage
            assert finish_reason is not None
            assert usage is not None
            answers.append(Completion(text="".join(parts), finish_reason=finish_reason, usage=usage))
        return answers


def _size(prompt: Prompt | Sequence[int]) -> int:
    if isinstance(prompt, str):
        return len(prompt)
    return sum(len(item["content"]) if not isinstance(item, int) else 1 for item in prompt)
