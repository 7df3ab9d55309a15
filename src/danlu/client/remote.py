"""A LanguageModel behind HTTP: the async client on a loop of its own, for callers that are not async."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from danlu.client.client import Client
from danlu.core.errors import RequestError
from danlu.core.records import Completion, Delta, GenerateOptions, OnAdvance, Prompt, Score

T = TypeVar("T")


class RemoteModel:
    """A LanguageModel behind HTTP: prompts go out together, ``concurrency`` at a time, from a thread of its own."""

    def __init__(self, client: Client, *, concurrency: int = 16) -> None:
        """Takes ``client`` over: it must not be used elsewhere, and is closed by ``close``."""
        self._client = client
        self._concurrency = concurrency
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="danlu-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread. Safe to call twice."""
        if not self._loop.is_closed():
            self._wait_for(self._client.close())
            self._wait_for(self._loop.shutdown_asyncgens())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def generate(
        self, prompts: Sequence[Prompt], options: GenerateOptions | None = None, on_advance: OnAdvance | None = None
    ) -> list[Completion]:
        """Answers in the order of ``prompts``; the first failure stops the rest."""
        return self._wait_for(self._generate(prompts, options, on_advance))

    async def _generate(
        self, prompts: Sequence[Prompt], options: GenerateOptions | None, on_advance: OnAdvance | None
    ) -> list[Completion]:
        return await self._each([lambda p=prompt: self._client.answer(p, options) for prompt in prompts], on_advance)

    async def _each(
        self, asks: Sequence[Callable[[], Coroutine[Any, Any, T]]], on_advance: OnAdvance | None = None
    ) -> list[T]:
        """What they give, in order, so many at a time."""
        found: dict[int, T] = {}
        queue = iter(enumerate(asks))

        async def work() -> None:
            for index, ask in queue:
                found[index] = await ask()
                if on_advance is not None:
                    on_advance(1)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._concurrency, len(asks))):
                    group.create_task(work())
        except* RequestError as errors:
            raise _first(errors) from errors
        return [found[index] for index in range(len(asks))]

    def stream(self, prompt: Prompt, options: GenerateOptions | None = None) -> Iterator[Delta]:
        """The answer piece by piece; leaving early stops the server too."""
        if isinstance(prompt, str):
            deltas = self._client.stream_complete(prompt, options)
        else:
            deltas = self._client.stream_chat(prompt, options)
        try:
            while True:
                delta = self._wait_for(_next(deltas))
                if delta is None:
                    return
                yield delta
        finally:
            if not self._loop.is_closed():
                self._wait_for(_close(deltas))

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[Score]:
        """Log-likelihood of each continuation after its prompt. Raises RequestError 501 where the server cannot tell
        (see ``Client.score``)."""
        pairs = list(zip(prompts, continuations, strict=True))
        return self._wait_for(self._each([lambda p=prompt, c=text: self._client.score(p, c) for prompt, text in pairs]))

    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


async def _next(deltas: AsyncIterator[Delta]) -> Delta | None:
    return await anext(deltas, None)


async def _close(deltas: AsyncIterator[Delta]) -> None:
    assert isinstance(deltas, AsyncGenerator)
    await deltas.aclose()


def _first(errors: BaseExceptionGroup[RequestError]) -> RequestError:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
