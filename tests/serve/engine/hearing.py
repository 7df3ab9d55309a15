"""What the engine's own tests stand on: requests and what they hear, an engine without a thread, and steps that can be
held, watched or made to fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from danlu.core.errors import DanluError
from danlu.core.records import Delta, GenerateOptions, Message, Usage
from danlu.models.executor import Executor
from danlu.models.model import Model
from danlu.models.paged import Segment
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.engine import Engine
from danlu.serve.engine.request import Caller, Event, ModelStatus, ReadRequest, Ticket, WriteRequest
from danlu.serve.engine.resident import Resident
from danlu.serve.engine.ticket import EngineTicket
from danlu.serve.engine.writer import Writer

AnyPrompt = str | list[Message] | list[int]
LONG = GenerateOptions(max_tokens=400, ignore_eos=True)


class Listener:
    """Keeps what an engine says about one request."""

    ticket: Ticket

    def __init__(self, num_answers: int = 1) -> None:
        self.events: list[Event] = []
        self.begun, self.ended = threading.Event(), threading.Event()
        self._left = num_answers

    def __call__(self, event: Event) -> None:
        assert not self.ended.is_set(), f"{event} follows the last event"
        self.events.append(event)
        self.begun.set()
        self._left -= not isinstance(event, Delta) or event.finish_reason is not None
        if isinstance(event, DanluError) or not self._left:
            self.ended.set()

    def last(self) -> Event:
        assert self.ended.wait(5), f"only {self.events} came"
        return self.events[-1]

    def deltas(self, index: int = 0) -> list[Delta]:
        self.last()
        return [event for event in self.events if isinstance(event, Delta) and event.index == index]

    def reason(self, index: int = 0) -> str | None:
        error = self.last()
        assert isinstance(error, Delta), error
        return self.deltas(index)[-1].finish_reason

    def text(self, index: int = 0) -> str:
        return "".join(delta.text for delta in self.deltas(index))

    def ids(self, index: int = 0) -> tuple[int, ...]:
        return tuple(token for delta in self.deltas(index) for token in delta.token_ids)

    def usage(self, index: int = 0) -> Usage:
        usage = self.deltas(index)[-1].usage
        assert usage is not None
        return usage

    def error(self) -> DanluError:
        last = self.last()
        assert isinstance(last, DanluError), last
        return last


def ask(prompt: AnyPrompt, options: GenerateOptions = LONG, *, model: str = "model", **fields: Any) -> WriteRequest:
    """A request; ``tenant``, ``priority`` and ``timeout_s`` are the caller's, other fields the request's."""
    caller = {name: fields.pop(name) for name in ("tenant", "priority", "timeout_s") if name in fields}
    return WriteRequest(model=model, prompt=prompt, options=options, caller=Caller(**caller), **fields)


def submit(engine: Engine, request: WriteRequest | ReadRequest) -> Listener:
    """Send a request."""
    listener = Listener(request.options.n if isinstance(request, WriteRequest) else 1)
    listener.ticket = engine.submit(request, listener)
    return listener


def eventually(check: Callable[[], bool]) -> bool:
    """Whether it becomes true soon."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(0.002)
    return False


def only_status(engine: Engine) -> ModelStatus:
    """Of the one model."""
    (status,) = engine.status().models.values()
    return status


def is_idle(engine: Engine) -> bool:
    """Whether nothing is queued, running or kept."""
    status = engine.status()
    models = [(one.running, one.waiting, one.waiting_tokens, one.cache_usage) for one in status.models.values()]
    return set(models) == {(0, 0, 0, 0.0)} and status.last_step_age_s == 0.0


class Desk:
    """One model's lanes without the engine's thread: steps are taken when a test says so, at the time it says."""

    def __init__(self, model: Model, **config: Any) -> None:
        settings = {"cache_tokens": 4096, "max_rows": 8, "threads": 1, **config}
        self.resident = Resident(model, "model", EngineConfig(**settings))
        self.late_s = 0.0
        """How far the clock is ahead."""

    @property
    def writer(self) -> Writer:
        assert self.resident.writer is not None
        return self.resident.writer

    @property
    def status(self) -> ModelStatus:
        return self.resident.status()

    def ask(self, prompt: AnyPrompt, options: GenerateOptions = LONG, **fields: Any) -> Listener:
        """Queue a request. Raises what ``submit`` would tell the listener."""
        return self.send(ask(prompt, options, **fields))

    def send(self, request: WriteRequest | ReadRequest) -> Listener:
        listener = Listener(request.options.n if isinstance(request, WriteRequest) else 1)
        ticket = EngineTicket(request.caller, 1e6, listener, lambda: None)
        listener.ticket = ticket
        self.resident.add(self.resident.prepare(request, ticket), ticket, self.now)
        return listener

    @property
    def now(self) -> float:
        return time.monotonic() + self.late_s

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.resident.step(self.now)

    def run(self) -> None:
        """Until nothing is left; everything must have been given back then."""
        for _ in range(20_000):
            if not self.resident.has_work:
                break
            self.step()
        assert not self.resident.has_work, "it does not end"
        check_books(self.writer)
        assert self.status.cache_usage == 0.0

    def cancel(self, listener: Listener) -> None:
        assert isinstance(listener.ticket, EngineTicket)
        self.resident.cancel(listener.ticket)


def check_books(writer: Writer) -> None:
    """Every page belongs to whom the pools say."""
    batch = writer._scheduler.batch
    rows = list(writer._scheduler.rows())
    batch.pool.check([row.table for row in rows])
    if batch._memory_pool is not None:
        batch._memory_pool.check([row.memory for row in rows])
    assert batch.num_places == batch.max_rows - sum(row.num_answers for row in batch.rows)


class Watched:
    """An executor that calls ``before`` at the start of every pass."""

    def __init__(self, inner: Executor, before: Callable[[Sequence[Segment]], None]) -> None:
        self._inner, self._before = inner, before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def hidden(self, ids: Sequence[int], segments: Sequence[Segment], outs: Sequence[int]) -> Tensor:
        self._before(segments)
        return self._inner.hidden(ids, segments, outs)

    def run(self, ids: Sequence[int], segments: Sequence[Segment], outs: Sequence[int]) -> Tensor:
        self._before(segments)
        return self._inner.run(ids, segments, outs)


def resident_of(engine: Engine, name: str = "model") -> Resident:
    """A model in an engine's memory."""
    return next(one for one in engine._residents.loaded if one.name == name)


def writer_of(engine: Engine, name: str = "model") -> Writer:
    """Its write lane."""
    writer = resident_of(engine, name).writer
    assert writer is not None
    return writer


def watch(writer: Writer, before: Callable[[Sequence[Segment]], None]) -> None:
    """Call ``before`` at the start of every pass of this writer's."""
    writer._executor = cast("Executor", Watched(writer._executor, before))


class Gate:
    """Holds the engine's thread before every pass of its only model until it is opened."""

    def __init__(self, engine: Engine) -> None:
        self._open, self.arrived = threading.Event(), threading.Event()
        watch(writer_of(engine), self._hold)

    def _hold(self, segments: Sequence[Segment]) -> None:
        self.arrived.set()
        assert self._open.wait(20)

    def open(self) -> None:
        self._open.set()


class Dice:
    """An executor that computes nothing: its logits are random, with a seed."""

    def __init__(self, inner: Executor, vocabulary: int, seed: int = 0) -> None:
        self._inner = inner
        self._random = torch.randn(64, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3.0
        self._turn = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def hidden(self, ids: Sequence[int], segments: Sequence[Segment], outs: Sequence[int]) -> Tensor:
        return torch.zeros(len(outs), 1)

    def logits(self, hidden: Tensor) -> Tensor:
        self._turn += 1
        return self._random[(torch.arange(len(hidden)) + self._turn) % len(self._random)]

    def run(self, ids: Sequence[int], segments: Sequence[Segment], outs: Sequence[int]) -> Tensor:
        return self.logits(self.hidden(ids, segments, outs))


def throw_dice(writer: Writer, model: Model) -> None:
    """From now on every pass of this writer's costs nothing and means nothing."""
    writer._executor = cast("Executor", Dice(writer._executor, model.config.vocabulary_size))
