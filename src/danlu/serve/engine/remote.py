"""An engine in a process of its own, behind the same seam as one in this process.

Starts the process, passes requests and events, and starts it again when it crashes or hangs: everybody who waits for
an answer then hears a 503 and may ask again. Knows nothing of torch or HTTP.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from msgspec import Raw

from danlu.core.errors import DanluError, OverloadedError, RequestError, ResourceError, UnavailableError
from danlu.core.records import Delta, Usage
from danlu.serve.engine.language import AskedAsLanguageModel
from danlu.serve.engine.request import (
    AdapterRequest,
    EngineStatus,
    Event,
    OnEvent,
    Reply,
    Request,
    ServedModel,
    Ticket,
    WriteRequest,
)
from danlu.serve.engine.spec import EngineSpec
from danlu.serve.engine.supervise import COMMAND, Crashes, Process, RemoteConfig
from danlu.serve.engine.wire import (
    Outstanding,
    WireError,
    check_hello,
    is_event,
    pack,
    pack_request,
    unpack,
    unpack_event,
)

_LOG = logging.getLogger(__name__)
_TICK_S = 0.2
"""How often the state of the process is looked at."""

_Phase = Literal["loading", "ready", "restarting", "stopping", "stopped", "failed"]


class RemoteEngine(AskedAsLanguageModel):
    """A ``ServingEngine`` whose model lives in another process. Every method may be called from any thread."""

    def __init__(
        self,
        spec: EngineSpec,
        config: RemoteConfig | None = None,
        *,
        say: Callable[[str], None] = _LOG.info,
        command: Sequence[str] | None = None,
    ) -> None:
        """Returns when the models and adapters of ``spec`` are loaded; raises DanluError when they cannot be.

        ``say`` hears lines about the progress; ``command`` starts a process other than our own.
        """
        self._spec = spec
        self._config = config or RemoteConfig()
        self._say = say
        self._command = command or COMMAND
        self._lock = threading.Lock()
        self._phase: _Phase = "loading"
        self._process: Process | None = None
        self._open: dict[int, RemoteTicket] = {}
        self._numbers = itertools.count(1)
        self._adapters = {adapter.name: adapter for adapter in spec.adapters}
        self._models: tuple[ServedModel, ...] = ()
        self._status = EngineStatus(is_ready=False, last_step_age_s=0.0)
        self._heard_at = time.monotonic()
        self._restarts = 0
        self._start_s = 1.0
        self._kill_at = math.inf
        self._problem: DanluError | None = None
        self._has_begun = threading.Event()
        self._is_told_to_stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-remote", daemon=True)
        self._thread.start()
        try:
            self._has_begun.wait()
        except BaseException:  # Ctrl-C while loading
            self.stop(0.0)
            raise
        if self._problem is not None:
            self._thread.join()
            raise self._problem

    def __enter__(self) -> RemoteEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(0.0)

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        process = self._process
        return None if process is None else process.pid

    # ServingEngine

    def models(self) -> Sequence[ServedModel]:
        """What is served now, adapters after their models."""
        return self._models

    def submit(self, request: Request, on_event: OnEvent) -> Ticket:
        """Queue a request and return at once; what is wrong with it is its only event."""
        ticket = RemoteTicket(self, next(self._numbers), request, on_event)
        problem = self._send(ticket)
        if problem is not None:
            ticket.tell(problem)
        return ticket

    def _send(self, ticket: RemoteTicket) -> DanluError | None:
        """Why the request cannot be sent; None when it was."""
        try:
            item = pack_request(ticket.id, ticket.request)
        except TypeError as error:
            return RequestError(f"The request holds {error}.", "Send plain data.")
        with self._lock:
            process = self._process
            if self._phase != "ready" or process is None:
                return self._unavailable()
            if len(item) > process.outbox.max_item_bytes:
                return RequestError(
                    f"The request is {len(item)} bytes, more than {process.outbox.max_item_bytes}.",
                    "Send less at a time.", status=413,
                )  # fmt: skip
            if len(self._open) >= self._config.max_open or not process.outbox.put(item):
                return OverloadedError(
                    f"The queue is full: {len(self._open)} requests wait.", "Try again after Retry-After seconds."
                )
            if not self._open:  # an idle process says little: its silence counts from now on
                self._heard_at = time.monotonic()
            self._open[ticket.id] = ticket
        return None

    def _unavailable(self) -> RequestError:
        if self._phase in ("stopping", "stopped"):
            return UnavailableError("The engine is stopping.", "Try again soon, or elsewhere.", code="engine_stopping")
        if self._phase == "failed":
            return UnavailableError(
                "The engine has crashed too often and is not started again.", "The server's log says why.",
                code="engine_failed", retry_after_s=60,
            )  # fmt: skip
        return UnavailableError(
            "The engine is being started again.", "Try again after Retry-After seconds.",
            code="engine_restarting", retry_after_s=max(1, min(60, math.ceil(self._start_s))),
        )  # fmt: skip

    def cancel(self, ticket: RemoteTicket) -> None:
        """Drop a request; see ``Ticket``."""
        with self._lock:
            process = self._process
            if self._open.get(ticket.id) is ticket and process is not None:
                ticket.outstanding.is_cancelled = True
                process.outbox.put(pack("cancel", ticket.id, None), is_urgent=True)

    def status(self) -> EngineStatus:
        """Numbers for health checks and metrics, at most a second old."""
        with self._lock:
            if self._phase == "failed":
                return EngineStatus(is_ready=False, last_step_age_s=math.inf, restarts=self._restarts)
            age_s = self._status.last_step_age_s
            if self._open:
                age_s += time.monotonic() - self._heard_at
            is_ready = self._phase == "ready" and self._status.is_ready
            return replace(self._status, is_ready=is_ready, last_step_age_s=age_s, restarts=self._restarts)

    def stop(self, drain_s: float) -> None:
        """Take no more requests, finish the running ones within ``drain_s``, end the rest with ``abort``."""
        with self._lock:
            kill_at = time.monotonic() + drain_s + self._config.stop_s
            self._kill_at = min(self._kill_at, kill_at)
            if self._phase == "ready" or (self._phase == "stopping" and self._process is not None):
                assert self._process is not None
                self._process.outbox.put(pack("stop", 0, float(drain_s)), is_urgent=True)
            if self._phase not in ("stopped", "failed"):
                self._phase = "stopping"
            self._is_told_to_stop.set()
        self._thread.join()

    # the thread that starts the process, listens to it and starts it again

    def _run(self) -> None:
        crashes = Crashes(self._config)
        try:
            while not self._is_told_to_stop.is_set():
                reason = self._live()
                if self._is_told_to_stop.is_set() or not self._has_begun.is_set():
                    break
                delay_s = crashes.add(time.monotonic())
                with self._lock:
                    if self._phase != "stopping":
                        self._phase = "restarting" if delay_s is not None else "failed"
                self._end_open(UnavailableError(
                    "The engine had to be started again while it worked on this request.", "Send it again.",
                    code="engine_restarted", retry_after_s=max(1, min(60, math.ceil(self._start_s))),
                ))  # fmt: skip
                if delay_s is None:
                    _LOG.error("The engine's process ended: %s. It has crashed too often: given up.", reason)
                    return
                _LOG.error("The engine's process ended: %s. It is started again in %g s.", reason, delay_s)
                self._is_told_to_stop.wait(delay_s)
                self._restarts += 1
        finally:
            with self._lock:
                if self._phase != "failed":
                    self._phase = "stopped"
            self._end_open(None)
            self._has_begun.set()

    def _live(self) -> str:
        """The life of one process, and why it ended. What is wrong before the first one serves is the caller's."""
        began = time.monotonic()
        process: Process | None = None
        problem: DanluError | None = None
        reason = ""
        try:
            process = Process.start(self._command, self._spec, self._config, self._is_told_to_stop.is_set)
            self._wait_until_ready(process)
            self._start_s = time.monotonic() - began
            self._listen(process)
        except EOFError:
            reason = "it is gone"
        except WireError as error:
            reason = f"it cannot be understood, {error}"
        except DanluError as error:
            problem, reason = error, str(error)
        finally:
            with self._lock:
                self._process = None
            if process is not None:
                reason = f"{reason} ({process.close(self._config.stop_s)})"
        if not self._has_begun.is_set():
            self._problem = problem or ResourceError(
                f"The engine's process ended while it was loading: {reason}.", "Its log is above."
            )
        return reason

    def _wait_until_ready(self, process: Process) -> None:
        """Greeting, loading, adapters; the phase is "ready" after it."""
        greeting, *items = self._read(process)
        check_hello(greeting)
        is_ready = False
        while not is_ready:
            for operation, request_id, payload in items:
                if operation == "progress":
                    self._say(unpack(payload, str))
                elif operation == "ready":
                    is_ready = True
                elif operation == "error":
                    problem = unpack_event(operation, payload)
                    assert isinstance(problem, DanluError)
                    raise problem
                else:
                    self._take(operation, request_id, payload)
            items = [] if is_ready else self._read(process)
        for adapter in list(self._adapters.values()):
            self._load_adapter(process, adapter)
        with self._lock:
            if self._phase == "stopping":
                raise EOFError("told to stop")
            self._process, self._phase, self._heard_at = process, "ready", time.monotonic()
        self._has_begun.set()

    def _load_adapter(self, process: Process, adapter: AdapterRequest) -> None:
        """Load it before anybody is served. One that loaded once and does not any more is left out, with an error."""
        self._say(f"Loading adapter {adapter.name}")
        answers: list[Event] = []
        ticket = RemoteTicket(self, next(self._numbers), adapter, answers.append)
        with self._lock:
            self._open[ticket.id] = ticket
        process.outbox.put(pack_request(ticket.id, adapter), is_urgent=True)
        while not answers:
            for item in self._read(process):
                self._take(*item)
        problem = answers[0]
        if isinstance(problem, DanluError):
            if not self._has_begun.is_set():
                raise problem
            _LOG.error("Adapter %s could not be loaded again: %s", adapter.name, problem)
            del self._adapters[adapter.name]

    def _read(self, process: Process) -> list[tuple[str, int, Raw]]:
        """The next items of a process that is being started; EOFError when it is to be no more."""
        while True:
            items = process.reader.read(_TICK_S)
            if self._is_told_to_stop.is_set():
                process.kill()
                raise EOFError("told to stop")
            if items:
                return items

    def _listen(self, process: Process) -> None:
        """Hear the process until it says that it has stopped; EOFError when it is gone or had to be killed."""
        while True:
            items = process.reader.read(_TICK_S)
            for operation, request_id, payload in items or ():
                if operation == "stopped":
                    return
                self._take(operation, request_id, payload)
            if self._is_told_to_stop.is_set():
                if time.monotonic() > self._kill_at:
                    process.kill()
                    return
                continue
            age_s = (self._status if items else self.status()).last_step_age_s  # silence counts if there is any
            if age_s > self._config.stall_s:
                _LOG.error("The engine has stood still for %g s.", age_s)
                process.kill(is_hung=True)
                raise EOFError("it hangs")

    def _take(self, operation: str, request_id: int, payload: Raw) -> None:
        if is_event(operation):
            self._hear(request_id, unpack_event(operation, payload))
        elif operation == "status":
            status: EngineStatus = unpack(payload, EngineStatus)
            with self._lock:
                self._status, self._heard_at = status, time.monotonic()
        elif operation == "models":
            self._models = unpack(payload, tuple[ServedModel, ...])
        else:
            raise WireError(f"{operation!r} is not known")

    def _hear(self, request_id: int, event: Event) -> None:
        with self._lock:
            ticket = self._open.get(request_id)
            if ticket is None:
                return  # cancelled: nobody waits for it
            if ticket.outstanding.is_last(event):
                del self._open[request_id]
        request = ticket.request
        if isinstance(request, AdapterRequest) and isinstance(event, Reply):
            self._adapters.pop(request.name, None)
            if request.action == "load":
                self._adapters[request.name] = request
        ticket.tell(event)

    def _end_open(self, problem: DanluError | None) -> None:
        """The last event of everything that is open: ``problem``, or the end of a server that stops."""
        with self._lock:
            tickets, self._open = list(self._open.values()), {}
        for ticket in tickets:
            ticket.tell(problem or _abort(ticket.request))


def _abort(request: Request) -> Event:
    if isinstance(request, WriteRequest):
        return Delta(text="", finish_reason="abort", usage=Usage(prompt_tokens=0, completion_tokens=0))
    return UnavailableError("The engine is stopping.", "Try again soon, or elsewhere.", code="engine_stopping")


class RemoteTicket:
    """One request inside the other process."""

    def __init__(self, engine: RemoteEngine, request_id: int, request: Request, on_event: OnEvent) -> None:
        self.id = request_id
        self.request = request
        self.outstanding = Outstanding(request)
        self._engine = engine
        self._on_event = on_event

    def cancel(self) -> None:
        """Drop the request; see ``Ticket``."""
        self._engine.cancel(self)

    def tell(self, event: Event) -> None:
        """Hand an event to the caller. A listener that raises breaks its own contract, not the others' answers."""
        try:
            self._on_event(event)
        except Exception:  # code of others may fail in any way, and this thread serves everybody
            _LOG.exception("a listener of the engine failed")
