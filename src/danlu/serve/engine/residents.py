"""The models of an engine: which are in memory, which come when they are asked for, which have to go.

A model that is not in memory is loaded by the first request for it, in a thread of its own, while all requests for it
wait in a bounded line. Where memory is short, models make room: those that nobody uses, the longest unused first; when
all are in use, one takes no more requests and goes once it is done. Only the engine's thread lets a model go, so
nothing computes with it then. Knows no lanes and no steps.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from danlu.core.errors import DanluError, OverloadedError, RequestError, ResourceError
from danlu.core.memory import release_memory
from danlu.models.model import Model
from danlu.serve.engine.config import EngineConfig, mebibytes
from danlu.serve.engine.needs import Needs, describe, free_bytes
from danlu.serve.engine.request import ModelStatus, Request, ServedModel
from danlu.serve.engine.resident import Resident, load_resident
from danlu.serve.engine.spec import ModelSpec
from danlu.serve.engine.ticket import EngineTicket, cancelled, too_late

_LOG = logging.getLogger(__name__)
_LEAST_S = 10.0
"""A model in use stays at least so long before it has to make room: loading is not to be all that is done."""
_LOOK_S = 1.0
"""How often the loading thread looks anew whether there is room."""

HandOver = Callable[[Resident, Request, EngineTicket], None]
"""Lets a model begin with a request. Whoever is called gives the model back (``give_back``); does not raise."""


@dataclass(eq=False)
class _Place:
    """One name that is served."""

    name: str
    spec: ModelSpec | None
    """None for a model that came in memory: it stays there."""
    needs: Needs
    resident: Resident | None = None
    waiting: deque[tuple[Request, EngineTicket]] = field(default_factory=deque[tuple[Request, EngineTicket]])
    """Requests that it is being loaded for."""
    num_borrowed: int = 0
    """Requests that are being made ready with it."""
    is_leaving: bool = False
    """Whether it takes no more requests and goes once it is idle."""
    loaded_at: float = 0.0

    @property
    def is_idle(self) -> bool:
        return self.resident is not None and not self.num_borrowed and not self.resident.has_work

    @property
    def can_go(self) -> bool:
        return self.spec is not None and self.resident is not None and self.resident.num_adapters == 0


class Residents:
    """Every method may be called from any thread, but for ``sweep``, which is the engine's own."""

    def __init__(
        self,
        models: Mapping[str, ModelSpec | Model],
        config: EngineConfig,
        hand_over: HandOver,
        wake: Callable[[], None],
    ) -> None:
        """Loads the models in turn as long as there is room; the first one must fit. ``wake`` wakes the engine.

        Raises ModelError and ResourceError for what cannot be loaded or served.
        """
        self._config = config
        self._created = int(time.time())
        self._hand_over = hand_over
        self._wake = wake
        self._changed = threading.Condition()
        self._places: dict[str, _Place] = {}
        self._loader: threading.Thread | None = None
        self._is_over = False
        self._has_garbage = False
        self.loaded: tuple[Resident, ...] = ()
        """Those in memory."""
        try:
            for name, spec in models.items():
                self._places[name] = self._first(name, spec)
        except BaseException:
            self._close_all()
            raise

    def _first(self, name: str, spec: ModelSpec | Model) -> _Place:
        """A name at the start, its model loaded when there is room for it."""
        if isinstance(spec, Model):
            place = _Place(name, None, Needs(0, served=None))
            self._settle(place, load_resident(spec, name, self._config, self._promised()))
            return place
        place = _Place(name, spec, Needs(0, served=None))
        if self.loaded:  # the first one is loaded whatever it needs: it may be less than it looks
            place.needs = describe(spec, self._created)
            if not self._has_room(place):
                why = f"max_resident_models is {self._config.max_resident_models}"
                if place.needs.size_bytes > self._left():
                    why = f"it takes about {mebibytes(place.needs.size_bytes)} MiB"
                    why += f", and {mebibytes(max(0, self._left()))} MiB are free"
                _LOG.warning("'%s' is loaded when it is asked for: %s.", name, why)
                return place
        self._settle(place, self._load(place))
        return place

    # what is served

    def served(self) -> list[ServedModel]:
        """What clients are told of each name."""
        with self._changed:
            return [self._served(place) for place in self._places.values()]

    def _served(self, place: _Place) -> ServedModel:
        if place.resident is not None:
            return place.resident.served
        assert place.needs.served is not None
        return replace(place.needs.served, is_loaded=False)

    def status(self) -> dict[str, ModelStatus]:
        """How each name is doing."""
        with self._changed:
            places = [(place.name, place.resident, len(place.waiting)) for place in self._places.values()]
        found: dict[str, ModelStatus] = {}
        for name, resident, num_waiting in places:
            status = ModelStatus() if resident is None else resident.status()
            found[name] = replace(status, waiting=status.waiting + num_waiting) if num_waiting else status
        return found

    # requests

    def borrow(self, name: str, request: Request, ticket: EngineTicket, others: Sequence[str] = ()) -> Resident | None:
        """The model to begin a request with, to be given back; or None when the request waits for it to be loaded.

        Raises RequestError when there is no such model (``others`` are further names to be told of), or too many wait.
        """
        with self._changed:
            place = self._find(name, others)
            if place.resident is not None and not place.is_leaving:
                place.num_borrowed += 1
                return place.resident
            if len(place.waiting) >= self._config.max_waiting:
                raise OverloadedError(
                    f"'{name}' is being loaded, and {len(place.waiting)} requests wait for it.",
                    "Try again after Retry-After seconds.", retry_after_s=5,
                )  # fmt: skip
            place.waiting.append((request, ticket))
            self._start_loader()
            self._changed.notify_all()
        return None

    def give_back(self, resident: Resident) -> None:
        """A request that the model was borrowed for is in its lanes, or over."""
        with self._changed:
            place = self._places[resident.name]
            place.num_borrowed -= 1
            if place.is_leaving or not place.num_borrowed:
                self._changed.notify_all()

    def _find(self, name: str, others: Sequence[str]) -> _Place:
        place = self._places.get(name)
        if place is None:
            names = ", ".join(f"'{name}'" for name in (*self._places, *others))
            raise RequestError(
                f"There is no model '{name[:100]}'.", f"This server has {names}.", status=404,
                code="model_not_found", param="model",
            )  # fmt: skip
        return place

    @property
    def has_waiting(self) -> bool:
        """Whether a request waits for its model, or is being made ready with it."""
        return any(place.waiting or place.num_borrowed for place in self._places.values())

    # in the engine's thread

    def next_due(self) -> float | None:
        """When ``sweep`` has something to do, if nothing else happens."""
        with self._changed:
            times = [ticket.deadline for place in self._places.values() for _, ticket in place.waiting]
            if self._config.idle_unload_s is not None:
                idle = [place.resident for place in self._places.values() if place.can_go and place.is_idle]
                times += [one.last_used + self._config.idle_unload_s for one in idle if one is not None]
        return min(times, default=None)

    def sweep(self, now: float) -> bool:
        """End requests that wait too long or that nobody wants any more, and let models go that have to; whether one
        went."""
        ended: list[tuple[EngineTicket, RequestError]] = []
        gone: list[Resident] = []
        with self._changed:
            for place in self._places.values():
                for request, ticket in list(place.waiting):
                    if ticket.is_cancelled or now >= ticket.deadline:
                        place.waiting.remove((request, ticket))
                        ended.append((ticket, cancelled() if ticket.is_cancelled else too_late()))
                if place.is_leaving and not place.can_go:  # it got an adapter meanwhile, and stays for it
                    place.is_leaving = False
                    self._changed.notify_all()
                if place.can_go and place.is_idle and (place.is_leaving or self._is_stale(place, now)):
                    gone.append(self._let_go(place))
            if ended or gone:
                self._changed.notify_all()
        for ticket, error in ended:
            ticket.close(error)
        for resident in gone:
            _LOG.info("'%s' was unloaded", resident.name)
            resident.close()
        return bool(gone)

    def _is_stale(self, place: _Place, now: float) -> bool:
        limit_s, resident = self._config.idle_unload_s, place.resident
        return limit_s is not None and resident is not None and now - resident.last_used >= limit_s

    def _let_go(self, place: _Place) -> Resident:
        resident = place.resident
        assert resident is not None
        place.needs = Needs(resident.size_bytes, resident.served)
        place.resident, place.is_leaving = None, False
        self._has_garbage = True
        self.loaded = tuple(one for one in self.loaded if one is not resident)
        return resident

    def end_waiting(self, error: RequestError) -> None:
        """End every request that waits for its model."""
        with self._changed:
            ended = [ticket for place in self._places.values() for _, ticket in place.waiting]
            for place in self._places.values():
                place.waiting.clear()
            self._changed.notify_all()
        for ticket in ended:
            ticket.close(error)

    def stop(self) -> None:
        """Load no more, and end the threads of every model."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        if self._loader is not None:
            self._loader.join()
        self._close_all()

    def _close_all(self) -> None:
        for resident in self.loaded:
            resident.close()

    # loading

    def _start_loader(self) -> None:
        if self._loader is None and not self._is_over:
            self._loader = threading.Thread(target=self._run, name="engine-loader", daemon=True)
            self._loader.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_over or self._has_garbage or self._wanted() is not None)
                if self._is_over:
                    return
                place, has_garbage, self._has_garbage = self._wanted(), self._has_garbage, False
            if has_garbage:
                release_memory()
            elif place is not None:
                self._bring(place)

    def _wanted(self) -> _Place | None:
        """The model that the longest waiting request is for, if nothing keeps it from being loaded."""
        wanted = [place for place in self._places.values() if place.waiting and not place.is_leaving]
        return min(wanted, key=lambda place: place.waiting[0][1].deadline, default=None)

    def _bring(self, place: _Place) -> None:
        """Load a model and let it begin with what waits for it; a problem is told to all who wait."""
        try:
            if place.resident is None:
                if not self._make_room(place):
                    return
                self._settle(place, self._load(place))
        except Exception as error:  # whatever it is, nobody may wait for a model that does not come
            problem = _problem(place.name, error)
            with self._changed:
                tickets = [ticket for _, ticket in place.waiting]
                place.waiting.clear()
            for ticket in tickets:
                ticket.close(problem)
            return
        with self._changed:
            waiting = list(place.waiting)
            place.waiting.clear()
            place.num_borrowed += len(waiting)
            resident = place.resident
        assert resident is not None
        for request, ticket in waiting:
            self._hand_over(resident, request, ticket)

    def _load(self, place: _Place) -> Resident:
        assert place.spec is not None
        started = time.perf_counter()
        resident = load_resident(place.spec, place.name, self._config, self._promised())
        _LOG.info("'%s' was loaded in %.1f s", place.name, time.perf_counter() - started)
        return resident

    def _settle(self, place: _Place, resident: Resident) -> None:
        with self._changed:
            place.resident, place.loaded_at = resident, time.monotonic()
            self.loaded = (*self.loaded, resident)

    # room

    def _promised(self) -> int:
        """Memory that caches of loaded models may still take."""
        return sum(resident.promised_bytes for resident in self.loaded)

    def _left(self) -> int:
        return free_bytes() - self._promised()

    def _has_room(self, place: _Place) -> bool:
        most = self._config.max_resident_models
        return (most is None or len(self.loaded) < most) and place.needs.size_bytes <= self._left()

    def _make_room(self, place: _Place) -> bool:
        """Wait until a model fits, others going for it where they must; False when nobody waits for it any more.

        Raises ResourceError when it would not fit alone.
        """
        while True:
            with self._changed:
                if self._is_over or not place.waiting:
                    return False
                has_garbage, self._has_garbage = self._has_garbage, False
            if has_garbage:
                release_memory()
            with self._changed:
                if self._has_room(place):
                    return True
                self._ask_to_leave(place)
            self._wake()
            with self._changed:
                self._changed.wait_for(lambda: self._has_garbage or self._is_over or not place.waiting, _LOOK_S)

    def _ask_to_leave(self, place: _Place) -> None:
        """Choose who makes room next, unless somebody is about to. Called with the lock held."""
        others = [one for one in self._places.values() if one.can_go and one is not place]
        going = [one.resident for one in others if one.resident is not None]
        could_be = self._left() + sum(one.size_bytes + one.promised_bytes for one in going)
        if not others or place.needs.size_bytes > could_be:
            raise ResourceError(
                f"'{place.name}' takes about {mebibytes(place.needs.size_bytes)} MiB, and no more than "
                f"{mebibytes(could_be)} MiB can be made free.",
                "Serve it with --scheme int8, with fewer other models, or on a larger machine.",
            )
        if any(one.is_leaving for one in others):
            return
        idle = [one for one in others if one.is_idle]
        if idle:
            victim = min(idle, key=lambda one: one.resident.last_used if one.resident else 0.0)
        else:
            victim = min(others, key=lambda one: one.loaded_at)
            if time.monotonic() - victim.loaded_at < _LEAST_S:
                return
        victim.is_leaving = True
        _LOG.info("'%s' makes room for '%s'", victim.name, place.name)


def _problem(name: str, error: Exception) -> RequestError:
    """What requests hear whose model does not come."""
    if isinstance(error, MemoryError):
        error = ResourceError("There is not enough memory.")
    if not isinstance(error, DanluError):
        _LOG.exception("'%s' cannot be loaded", name)
        return RequestError(f"'{name}' cannot be loaded.", "The server's log says why.", status=503)
    _LOG.warning("'%s' cannot be loaded: %s", name, error)
    text = f"'{name}' cannot be loaded: {error.message}"
    return RequestError(text, error.hint or "", status=503, code="model_not_loaded")
