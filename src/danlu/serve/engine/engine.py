"""The engine: many requests, one model, continuous batching in a thread of its own.

Every step admits waiting requests that fit, reads their prompts in one packed pass, and writes one token for every
running row; a finished row leaves at once and a waiting one takes its place. Queue and prompt tokens are bounded.
Knows nothing of HTTP. It is one of the three implementations of ``LanguageModel``.
"""

from __future__ import annotations

import collections
import logging
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from danlu.core.errors import ConfigError, DanluError, ModelError, OverloadedError, RequestError
from danlu.core.records import Completion, Delta, GenerateOptions, OnAdvance, Prompt, Score
from danlu.models.generate import check_writes, score
from danlu.models.model import Model
from danlu.models.network import EncoderDecoder
from danlu.models.writing import Writing
from danlu.serve.engine.request import EngineStatus, OnEvent
from danlu.serve.engine.runner import Runner

_LOG = logging.getLogger(__name__)
_MAX_FAILURES = 3
"""Steps in a row that may fail before the engine gives up."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How much the engine does at once."""

    max_rows: int = 64
    """Requests written at the same time."""
    max_waiting: int = 256
    """Requests that may queue; more are refused with 429."""
    max_waiting_tokens: int = 65_536
    """Prompt tokens that may queue; more are refused with 429."""
    prefill_tokens: int = 4096
    """Prompt tokens read in one step; a longer prompt is read alone."""
    cache_tokens: int = 24_576
    """Room of the key/value cache, rows times their longest."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ConfigError(f"{name} is {value}.", "Use 1 or more.")


class EngineTicket:
    """One request inside the engine."""

    def __init__(self, writing: Writing, on_event: OnEvent) -> None:
        self.writing = writing
        self.on_event = on_event
        self.prompt_tokens = len(writing.prompt_ids)
        self.is_cancelled = False

    def cancel(self) -> None:
        """Drop the request, queued or running; it is swept before the next step."""
        self.is_cancelled = True

    def tell(self, event: Delta | DanluError) -> None:
        """Hand an event to the caller. A listener that raises breaks its own contract, not the others' answers."""
        try:
            self.on_event(event)
        except Exception:  # code of others may fail in any way, and the loop that runs it serves everybody
            _LOG.exception("a listener of the engine failed")


class Engine:
    """A model being served. Every public method may be called from any thread."""

    def __init__(self, model: Model, name: str = "model", config: EngineConfig | None = None) -> None:
        check_writes(model)
        if isinstance(model.network, EncoderDecoder):
            raise ModelError(
                "The engine serves decoders; this model reads a source and writes a target.",
                "Use danlu.load(…).generate.",
            )
        self.name = name
        self.context_length = model.config.context_length
        self._model = model
        self._config = config or EngineConfig()
        self._runner = Runner(model, self._config.max_rows, self._config.cache_tokens)
        self._wake = threading.Condition()
        self._waiting: collections.deque[EngineTicket] = collections.deque()
        self._running: dict[Writing, EngineTicket] = {}
        self._is_draining = False
        self._stop_at = float("inf")
        self._failures = 0
        self._last_step = time.monotonic()
        self._prompt_tokens = self._generated_tokens = 0
        self._steps: collections.Counter[int] = collections.Counter()
        self._thread = threading.Thread(target=self._loop, name=f"engine-{name}", daemon=True)
        self._thread.start()

    # requests

    def submit(self, prompt: Prompt | Sequence[int], options: GenerateOptions, on_event: OnEvent) -> EngineTicket:
        """Queue a prompt (text, conversation or token ids) and return at once; see ``ServingEngine.submit``."""
        _check(options)
        writing = Writing(
            self._prompt_ids(prompt),
            options,
            self._model.chat.tokenizer,
            self.context_length,
            defaults=self._model.generation,
        )
        ticket = EngineTicket(writing, on_event)
        with self._wake:
            if self._is_draining or self._failures >= _MAX_FAILURES:
                what = "is stopping" if self._is_draining else "has failed"
                raise RequestError(f"The engine {what}.", "Try again soon, or elsewhere.", status=503)
            queued = [t for t in self._waiting if not t.is_cancelled]
            tokens = sum(t.prompt_tokens for t in queued) + ticket.prompt_tokens
            limits = self._config
            if len(queued) >= limits.max_waiting or (queued and tokens > limits.max_waiting_tokens):
                raise OverloadedError(
                    f"The queue is full: {len(queued)} requests wait.", "Try again after Retry-After seconds."
                )
            if not (self._waiting or self._running):
                self._last_step = time.monotonic()  # the thread is asleep, not hung
            self._waiting.append(ticket)
            self._wake.notify()
        return ticket

    def _prompt_ids(self, prompt: Prompt | Sequence[int]) -> Sequence[int]:
        if isinstance(prompt, str) or (prompt and not isinstance(prompt[0], int)):
            return self._model.chat.prompt_ids(prompt)  # pyright: ignore[reportArgumentType]
        size = self._model.config.vocabulary_size
        ids: list[int] = list(prompt)  # pyright: ignore[reportArgumentType, reportAssignmentType]
        wrong = next((i for i in ids if not 0 <= i < size), None)
        if wrong is not None:
            raise RequestError(f"Token id {wrong} is not of this model.", f"Ids are 0 to {size - 1}.", param="prompt")
        return ids

    def status(self) -> EngineStatus:
        """Numbers for health checks and metrics."""
        with self._wake:
            waiting = sum(not ticket.is_cancelled for ticket in self._waiting)
            age = time.monotonic() - self._last_step if self._waiting or self._running else 0.0
            has_failed = self._failures >= _MAX_FAILURES
            return EngineStatus(
                is_ready=not self._is_draining and not has_failed,
                running=len(self._running),
                waiting=waiting,
                last_step_age_s=float("inf") if has_failed else age,
                prompt_tokens=self._prompt_tokens,
                generated_tokens=self._generated_tokens,
                steps_by_batch_size=dict(self._steps),
                cache_usage=self._runner.cache_usage,
            )

    def stop(self, drain_s: float = 0.0) -> None:
        """Take no more requests, finish the running ones within ``drain_s``, end the rest with ``abort``."""
        with self._wake:
            self._is_draining = True
            self._stop_at = min(self._stop_at, time.monotonic() + drain_s)
            self._wake.notify()
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # LanguageModel

    def generate(
        self, prompts: Sequence[Prompt], options: GenerateOptions | None = None, on_advance: OnAdvance | None = None
    ) -> list[Completion]:
        """Answers in the order of ``prompts``; as many at once as fit, however many there are.

        Raises OverloadedError only when others fill the queue before the first of them is in it.
        """
        options = options or GenerateOptions()
        answers: list[Completion | None] = [None] * len(prompts)
        events: queue.SimpleQueue[tuple[int, Delta | DanluError]] = queue.SimpleQueue()
        tickets: dict[int, EngineTicket] = {}
        pending = collections.deque(enumerate(prompts))
        try:
            while pending or tickets:
                while pending and len(tickets) < self._config.max_rows + self._config.max_waiting // 2:
                    index, prompt = pending[0]
                    try:
                        tickets[index] = self.submit(prompt, options, _forward(events, index))
                    except OverloadedError:
                        if not tickets:
                            raise
                        break  # one of ours will end and make room
                    pending.popleft()
                index, event = events.get()
                if isinstance(event, DanluError):
                    raise event
                if event.finish_reason is not None:
                    answers[index] = tickets.pop(index).writing.completion()
                    if on_advance is not None:
                        on_advance(1)
        finally:
            for ticket in tickets.values():
                ticket.cancel()
        return [answer for answer in answers if answer is not None]

    def stream(self, prompt: Prompt, options: GenerateOptions | None = None) -> Iterator[Delta]:
        """The answer piece by piece; leaving the loop early cancels it."""
        events: queue.SimpleQueue[tuple[int, Delta | DanluError]] = queue.SimpleQueue()
        ticket = self.submit(prompt, options or GenerateOptions(), _forward(events, 0))
        try:
            while True:
                event = events.get()[1]
                if isinstance(event, DanluError):
                    raise event
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            ticket.cancel()

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[Score]:
        """Log-likelihood of each continuation after its prompt."""
        return score(self._model, prompts, continuations)

    # the engine's own thread

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._running or self._is_draining):
                    self._wake.wait()
                    self._last_step = time.monotonic()
                is_over = self._is_draining and (
                    time.monotonic() >= self._stop_at or not (self._waiting or self._running)
                )
                newcomers = [] if is_over else self._admit()
            if is_over:
                self._end_all()
                return
            try:
                self._step(newcomers)
                self._failures = 0
            except Exception as error:  # a bug or no memory: tell the callers, free the rows, go on
                _LOG.exception("engine step failed")
                self._fail(error)
                if self._failures >= _MAX_FAILURES:
                    return
            self._last_step = time.monotonic()

    def _admit(self) -> list[EngineTicket]:
        """Waiting requests that join this step, in order of arrival. Called with the lock held."""
        for ticket in [t for t in self._waiting if t.is_cancelled]:
            self._waiting.remove(ticket)
            ticket.tell(ticket.writing.abort())
        chosen: list[EngineTicket] = []
        tokens = 0
        while self._waiting:
            ticket = self._waiting[0]
            tokens += ticket.prompt_tokens
            too_many = bool(chosen) and tokens > self._config.prefill_tokens
            if too_many or not self._runner.fits([*(t.writing for t in chosen), ticket.writing]):
                break
            chosen.append(self._waiting.popleft())
            self._running[ticket.writing] = ticket
        return chosen

    def _step(self, newcomers: Sequence[EngineTicket]) -> None:
        """One token for every running row, then the newcomers' prompts and first tokens."""
        self._sweep_cancelled()
        joining = [t.writing for t in newcomers if t.writing.finish_reason is None]
        if self._runner.rows:
            self._steps[len(self._runner.rows)] += 1
            self._give(self._runner.rows, self._runner.decode())
            self._runner.drop_finished()
        if joining:
            self._prompt_tokens += sum(len(w.prompt_ids) for w in joining)
            self._give(joining, self._runner.prefill(joining))
            self._runner.drop_finished()

    def _sweep_cancelled(self) -> None:
        for ticket in [t for t in self._running.values() if t.is_cancelled]:
            del self._running[ticket.writing]
            ticket.tell(ticket.writing.abort())
        self._runner.drop_finished()

    def _give(self, writings: Sequence[Writing], tokens: Sequence[int]) -> None:
        for writing, token in zip(list(writings), tokens, strict=True):
            delta = writing.push(token)
            self._generated_tokens += 1
            ticket = self._running[writing]
            if delta.finish_reason is not None:
                del self._running[writing]
            if delta.text or delta.logprobs or delta.finish_reason is not None:
                ticket.tell(delta)

    def _fail(self, error: Exception) -> None:
        """End every running request with an error that says nothing of our insides."""
        self._failures += 1
        is_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        message = "The model ran out of memory." if is_memory else "The engine failed on a step."
        problem = RequestError(message, "Try again.", status=500)
        running, self._running = list(self._running.values()), {}
        if self._failures >= _MAX_FAILURES:
            with self._wake:
                running += self._waiting
                self._waiting.clear()
        self._runner.clear()
        for ticket in running:
            ticket.tell(problem)

    def _end_all(self) -> None:
        with self._wake:
            left = [*self._running.values(), *self._waiting]
            self._running.clear()
            self._waiting.clear()
        self._runner.clear()
        for ticket in left:
            ticket.tell(ticket.writing.abort())


_ONLY: Mapping[str, float] = {"n": 1, "num_beams": 1, "lookup_tokens": 0, "penalty_alpha": 0.0}


def _check(options: GenerateOptions) -> None:
    """The engine writes one answer a request, token by token."""
    for name, value in _ONLY.items():
        if getattr(options, name) != value:
            raise RequestError(
                f"{name} is {getattr(options, name)}; the engine has only {value}.",
                "Leave it out, or use danlu.load(…).generate.", param=name,
            )  # fmt: skip


def _forward(events: queue.SimpleQueue[tuple[int, Delta | DanluError]], index: int) -> OnEvent:
    return lambda event: events.put((index, event))
