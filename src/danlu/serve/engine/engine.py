"""The engine: many requests, some models, one thread that computes.

Requests are made ready in the threads that submit them and wait in an inbox; the engine's thread takes them in, gives
every model with work a step in turn, and hands out what came of it. Knows nothing of HTTP and of processes. It is one
of the three implementations of ``LanguageModel``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from danlu.core.errors import DanluError, RequestError
from danlu.models.model import Model
from danlu.serve.engine.adapters import Adapters, Change
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.language import AskedAsLanguageModel
from danlu.serve.engine.request import (
    AdapterRequest,
    Caller,
    DetokenizeRequest,
    EngineStatus,
    OnEvent,
    ReadRequest,
    Request,
    ServedModel,
    TokenizeRequest,
    TokenizerRequest,
    WriteRequest,
)
from danlu.serve.engine.resident import Resident
from danlu.serve.engine.residents import Residents
from danlu.serve.engine.spec import ModelSpec
from danlu.serve.engine.ticket import EngineTicket

_LOG = logging.getLogger(__name__)
_MAX_FAILURES = 3
"""Steps of a model in a row that may fail before the engine gives up."""


class Engine(AskedAsLanguageModel):
    """Models being served. Every public method may be called from any thread."""

    def __init__(self, models: Model | Mapping[str, ModelSpec | Model], config: EngineConfig | None = None) -> None:
        """A model alone is called "model". Raises ModelError and ResourceError for what cannot be loaded or served."""
        self._config = config or EngineConfig()
        named: Mapping[str, ModelSpec | Model] = {"model": models} if isinstance(models, Model) else models
        self._adapters = Adapters(self._config)
        self._wake = threading.Condition()
        self._inbox: deque[tuple[Resident, Any, EngineTicket]] = deque()
        self._nudged = False
        self._tickets: dict[EngineTicket, Resident] = {}
        self._is_draining = False
        self._is_over = False
        """Whether the engine's thread takes nothing in any more."""
        self._stop_at = float("inf")
        self._has_failed = False
        self._last_step = time.monotonic()
        self._residents = Residents(named, self._config, self._begin, self._nudge)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # what callers do

    def models(self) -> Sequence[ServedModel]:
        """What is served, adapters after their models."""
        return [served for model in self._residents.served() for served in (model, *self._adapters.served(model))]

    def submit(self, request: Request, on_event: OnEvent) -> EngineTicket:
        """Queue a request and return at once; see ``ServingEngine.submit``."""
        caller = request.caller if isinstance(request, (WriteRequest, ReadRequest)) else Caller()
        ticket = EngineTicket(caller, self._config.request_timeout_s, on_event, self._nudge)
        try:
            if isinstance(request, AdapterRequest) and request.action == "unload":
                ticket.close(self._adapters.unload(request.name))
                self._nudge()  # its slot is free once the thread has seen that nobody uses it
                return ticket
            self._check_runs()
            resident = self._borrow(request, ticket)
        except DanluError as error:
            ticket.close(error)
            return ticket
        if resident is not None:
            self._begin(resident, request, ticket)
        return ticket

    def _borrow(self, request: Request, ticket: EngineTicket) -> Resident | None:
        """The model that a request is for; None while it waits for that to be loaded. Raises RequestError."""
        if isinstance(request, AdapterRequest):
            base = self._adapters.base_of(request, self._residents.served())
            return self._residents.borrow(base, request, ticket)
        base = self._adapters.base_named(request.model)
        return self._residents.borrow(request.model if base is None else base, request, ticket, self._adapters.names)

    def _begin(self, resident: Resident, request: Request, ticket: EngineTicket) -> None:
        """Make a request ready and put it into the inbox, or answer it at once. The model was borrowed for it."""
        is_queued = False
        try:
            is_queued = self._answer_or_queue(resident, request, ticket)
        except DanluError as error:
            ticket.close(error)
        except Exception:  # a bug in what reads requests must not reach who sends them
            _LOG.exception("a request could not be made ready")
            ticket.close(RequestError("The engine failed on this request.", status=500))
        if not is_queued:
            self._residents.give_back(resident)
            if self._is_draining:  # it may have been the last
                self._nudge()

    def _answer_or_queue(self, resident: Resident, request: Request, ticket: EngineTicket) -> bool:
        """Whether it was queued."""
        if isinstance(request, TokenizeRequest):
            ticket.close(resident.tokenize(request))
            return False
        if isinstance(request, DetokenizeRequest):
            ticket.close(resident.detokenize(request))
            return False
        if isinstance(request, TokenizerRequest):
            ticket.close(resident.describe_tokenizer())
            return False
        if isinstance(request, AdapterRequest):
            prepared = self._adapters.load(request, resident, ticket)
        else:
            prepared = resident.prepare(request, ticket, self._adapters.find(request.model, resident, ticket))
        with self._wake:
            if self._is_over or self._has_failed:
                raise _stopping()
            if not self._inbox and not self._has_work():
                self._last_step = time.monotonic()  # the thread is asleep, not hung
            self._inbox.append((resident, prepared, ticket))
            self._wake.notify()
        return True

    def _check_runs(self) -> None:
        if self._is_draining or self._has_failed:
            what = "is stopping" if self._is_draining else "has failed"
            raise RequestError(f"The engine {what}.", "Try again soon, or elsewhere.", status=503)

    def _nudge(self) -> None:
        """Have the engine's thread look around."""
        with self._wake:
            self._nudged = True
            self._wake.notify()

    def status(self) -> EngineStatus:
        """Numbers for health checks and metrics."""
        with self._wake:
            is_busy = bool(self._inbox) or self._has_work()
            age = time.monotonic() - self._last_step if is_busy else 0.0
        return EngineStatus(
            is_ready=not self._is_draining and not self._has_failed,
            last_step_age_s=float("inf") if self._has_failed else age,
            models=self._residents.status(),
        )

    def stop(self, drain_s: float = 0.0) -> None:
        """Take no more requests, finish the running ones within ``drain_s``, end the rest with ``abort``."""
        with self._wake:
            self._is_draining = True
            self._stop_at = min(self._stop_at, time.monotonic() + drain_s)
            self._wake.notify()
        self._thread.join()
        self._residents.stop()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # the engine's own thread

    def _has_work(self) -> bool:
        return any(resident.has_work for resident in self._residents.loaded)

    def _run(self) -> None:
        try:
            self._loop()
        except Exception as error:  # a bug between steps: nobody may wait for an engine that is gone
            _LOG.exception("the engine failed")
            self._give_up(_problem(error))

    def _loop(self) -> None:
        while not self._has_failed:
            with self._wake:
                self._wait()
                is_over = self._is_draining and (time.monotonic() >= self._stop_at or not self._is_busy())
                self._is_over = is_over
                inbox, self._inbox = self._inbox, deque()
            now = time.monotonic()
            self._take_in(inbox, now)
            if is_over:
                self._residents.end_waiting(_stopping())
                for resident in self._residents.loaded:
                    resident.end_all(None)
                self._adapters.clear()
                return
            self._turn(now)
            self._adapters.sweep()
            self._last_step = time.monotonic()

    def _take_in(self, inbox: deque[tuple[Resident, Any, EngineTicket]], now: float) -> None:
        """Put what was made ready into the lanes. Nothing of it is left: who remembers a model keeps it in memory."""
        self._tickets |= {ticket: resident for resident, _, ticket in inbox}
        while inbox:
            resident, prepared, ticket = inbox.popleft()
            if isinstance(prepared, Change):
                self._adapters.install(prepared)
            else:
                resident.add(prepared, ticket, now)
            self._residents.give_back(resident)
            if ticket.is_cancelled:  # its cancel may have been heard before it was here
                resident.cancel(ticket)

    def _is_busy(self) -> bool:
        return bool(self._inbox) or self._has_work() or self._residents.has_waiting

    def _wait(self) -> None:
        """Until there is something to do. Called with the lock held."""
        while not (self._inbox or self._nudged):
            if self._is_draining and (not self._is_busy() or time.monotonic() >= self._stop_at):
                return
            now = time.monotonic()
            times = [at for resident in self._residents.loaded if (at := resident.ready_at(now)) is not None]
            times += [at for at in [self._residents.next_due()] if at is not None]
            if times and min(times) <= now:
                return
            timeout = min(times) - now if times else None
            if self._is_draining:
                left = self._stop_at - now
                timeout = left if timeout is None else min(timeout, left)
            self._wake.wait(timeout)
            self._last_step = time.monotonic()

    def _turn(self, now: float) -> None:
        """Sweep what nobody wants any more, then one step of every model that has work."""
        if self._residents.sweep(now):
            self._forget_closed()
        if self._nudged:
            self._nudged = False
            for ticket, resident in list(self._tickets.items()):
                if ticket.is_cancelled and not ticket.is_closed:
                    resident.cancel(ticket)
        for resident in self._residents.loaded:
            try:
                if resident.step(now):
                    resident.failures = 0
            except Exception as error:  # a bug or no memory: tell the callers, free the rows, go on
                _LOG.exception("a step of '%s' failed", resident.name)
                resident.failures += 1
                if resident.failures >= _MAX_FAILURES:
                    self._give_up(_problem(error))
                    return
                resident.fail(_problem(error))
        if len(self._tickets) > 2 * self._config.max_rows:
            self._forget_closed()

    def _forget_closed(self) -> None:
        self._tickets = {ticket: where for ticket, where in self._tickets.items() if not ticket.is_closed}

    def _give_up(self, problem: RequestError) -> None:
        """End everything, and take no more."""
        with self._wake:
            self._has_failed = True
            inbox, self._inbox = self._inbox, deque()
        self._residents.end_waiting(problem)
        for resident in self._residents.loaded:
            resident.end_all(problem)
        for ticket in (*self._tickets, *(ticket for _, _, ticket in inbox)):
            ticket.close(problem)  # whoever has not heard yet


def _stopping() -> RequestError:
    return RequestError("The server is stopping.", "Try elsewhere.", status=503)


def _problem(error: Exception) -> RequestError:
    """What callers hear of a failure: nothing of our insides."""
    is_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return RequestError(
        "The model ran out of memory." if is_memory else "The engine failed on a step.", "Try again.", status=500
    )
