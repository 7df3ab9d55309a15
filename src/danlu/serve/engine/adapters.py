"""The adapters of an engine: loaded and replaced while requests run, each answer wholly of one version.

An adapter is read and checked in the thread that asks for it, and put beside its model by the engine's thread between
two steps. One that is replaced or unloaded drains: requests that found it keep it, and its slot is used again when the
last of them has ended. Knows no HTTP and no steps.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from weakref import WeakKeyDictionary

from danlu.core.errors import DanluError, RequestError, UnavailableError
from danlu.models.adapters import LoadedAdapter, read_adapter
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.prepare import NO_ADAPTER, Adapter
from danlu.serve.engine.request import AdapterRequest, Reply, ServedModel
from danlu.serve.engine.resident import Resident
from danlu.serve.engine.ticket import EngineTicket

_FEWEST_USERS = 64
"""Requests of an adapter that are noted before those that have ended are forgotten."""


@dataclass(eq=False)
class Change:
    """An adapter that was read and waits for the engine's thread."""

    resident: Resident
    adapter: Adapter
    loaded: LoadedAdapter
    ticket: EngineTicket


@dataclass(eq=False)
class _Held:
    """An adapter beside its model."""

    resident: Resident
    adapter: Adapter
    created: int
    users: set[EngineTicket] = field(default_factory=set[EngineTicket])
    sweep_at: int = _FEWEST_USERS

    def forget_ended(self) -> None:
        self.users = {ticket for ticket in self.users if not ticket.is_closed}
        self.sweep_at = max(_FEWEST_USERS, 2 * len(self.users))


class Adapters:
    """All adapters of an engine. Thread-safe; ``install``, ``sweep`` and ``clear`` are the engine's thread's."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._versions = itertools.count(1)
        self._live: dict[str, _Held] = {}
        self._pending: list[Change] = []
        self._retired: list[_Held] = []
        self._free: WeakKeyDictionary[Resident, list[int]] = WeakKeyDictionary()
        """Slots beside each model that are not taken."""

    def served(self, model: ServedModel) -> list[ServedModel]:
        """The adapters of one model, as clients see them."""
        with self._lock:
            found = [held for held in self._live.values() if held.resident.name == model.name]
        return [
            replace(
                model, name=held.adapter.name, base=model.name, created=held.created,
                abilities=frozenset({"write"}), labels=(), width=0,
            )
            for held in found
        ]  # fmt: skip

    @property
    def names(self) -> Sequence[str]:
        """Of all that may be asked for."""
        with self._lock:
            return list(self._live)

    def base_named(self, name: str) -> str | None:
        """The model of an adapter; None when there is no adapter of this name."""
        with self._lock:
            held = self._live.get(name)
        return None if held is None else held.resident.name

    def find(self, name: str, resident: Resident, ticket: EngineTicket) -> Adapter:
        """What a request for ``name`` adds to the model: nothing, or an adapter, which stays as it is until the request
        has ended. Raises RequestError 404 for an adapter that was unloaded in between."""
        if name == resident.name:
            return NO_ADAPTER
        with self._lock:
            held = self._live.get(name)
            if held is None or held.resident is not resident:
                raise RequestError(
                    f"There is no model '{name[:100]}' any more.", "GET /v1/models lists what there is.", status=404,
                    code="model_not_found", param="model",
                )  # fmt: skip
            if len(held.users) >= held.sweep_at:
                held.forget_ended()
            held.users.add(ticket)
            return held.adapter

    def load(self, request: AdapterRequest, resident: Resident, ticket: EngineTicket) -> Change:
        """Read an adapter of a model and keep a slot for it. Raises RequestError for one that cannot be served."""
        with self._lock:
            self._check_name(request.name, resident)
        try:
            loaded = read_adapter(resident.model, Path(request.folder), max_rank=self._config.max_adapter_rank)
        except DanluError as error:
            raise RequestError(error.message, error.hint, code="invalid_adapter", param="lora_path") from error
        except OSError as error:
            raise RequestError(
                f"{request.folder} cannot be read: {error.strerror}.", "Give the folder of a PEFT adapter.",
                code="invalid_adapter", param="lora_path",
            ) from error  # fmt: skip
        with self._lock:
            self._check_name(request.name, resident)  # others load too
            slot = self._take_slot(resident)
            change = Change(resident, Adapter(request.name, slot, next(self._versions)), loaded, ticket)
            self._pending.append(change)
        return change

    def _take_slot(self, resident: Resident) -> int:
        """The lock is held. Versions that drain have slots too."""
        free = self._free.setdefault(resident, list(range(2 * self._config.max_adapters, 0, -1)))
        if not free:
            raise UnavailableError(
                f"Requests still use {len(self._retired)} adapters that were replaced or unloaded.",
                "Try again when they have ended.",
            )
        resident.num_adapters += 1
        return free.pop()

    def _free_slot(self, resident: Resident, slot: int) -> None:
        with self._lock:
            self._free[resident].append(slot)
            resident.num_adapters -= 1

    def unload(self, name: str) -> Reply:
        """Serve an adapter to no further request. Raises RequestError 404."""
        with self._lock:
            held = self._live.pop(name, None)
            if held is None:
                raise RequestError(
                    f"There is no adapter '{name[:100]}'.", _known(self._live), status=404, code="model_not_found",
                    param="lora_name",
                )  # fmt: skip
            self._retired.append(held)
        return _reply(held.resident, held.adapter)

    def install(self, change: Change) -> None:
        """Put an adapter beside its model; requests find it from now on. Replaces one of its name."""
        resident, adapter = change.resident, change.adapter
        assert resident.writer is not None
        try:
            resident.writer.put_adapter(adapter.slot, change.loaded.factors)
        except MemoryError:
            with self._lock:
                self._pending.remove(change)
            self._free_slot(resident, adapter.slot)
            change.ticket.close(UnavailableError("There is no memory for the adapter.", "Unload another."))
            return
        with self._lock:
            self._pending.remove(change)
            before = self._live.pop(adapter.name, None)
            if before is not None:
                self._retired.append(before)
            self._live[adapter.name] = _Held(resident, adapter, int(time.time()))
        change.ticket.close(_reply(resident, adapter))

    def sweep(self) -> None:
        """Let go of adapters that were replaced or unloaded and that no request uses any more."""
        if not self._retired:
            return
        with self._lock:
            for held in self._retired:
                held.forget_ended()
            drained = [held for held in self._retired if not held.users]
            self._retired = [held for held in self._retired if held.users]
        for held in drained:
            assert held.resident.writer is not None
            held.resident.writer.put_adapter(held.adapter.slot, {})
            self._free_slot(held.resident, held.adapter.slot)

    def clear(self) -> None:
        """Let go of all, when the engine has ended."""
        with self._lock:
            self._retired += self._live.values()
            self._live = {}
            for held in self._retired:
                held.users.clear()
        self.sweep()

    def base_of(self, request: AdapterRequest, models: Sequence[ServedModel]) -> str:
        """Name of the model that an adapter is for. Raises RequestError."""
        if not request.name or not request.folder:
            raise RequestError("An adapter needs a name and a folder.", "Give both.", param="lora_name")
        if any(model.name == request.name for model in models):
            raise RequestError(
                f"'{request.name}' is the name of a model.", "Give the adapter another.", param="lora_name"
            )
        writers = [model.name for model in models if "write" in model.abilities]
        if request.model in writers:
            return request.model
        if any(model.name == request.model for model in models):
            raise RequestError(
                f"'{request.model}' writes no text, so it takes no adapters.", _known(writers), param="base_model_name"
            )
        if request.model:
            raise RequestError(
                f"There is no model '{request.model[:100]}'.", _known(writers), status=404, code="model_not_found",
                param="base_model_name",
            )  # fmt: skip
        if len(writers) != 1:
            raise RequestError(
                f"An adapter may be for any of {len(writers)} models.", f"Name its model. {_known(writers)}",
                param="base_model_name",
            )  # fmt: skip
        return writers[0]

    def _check_name(self, name: str, resident: Resident) -> None:
        """Whether an adapter may be called so. The lock is held."""
        bases = {held.adapter.name: held.resident for held in (*self._live.values(), *self._pending)}
        if bases.get(name, resident) is not resident:
            raise RequestError(
                f"'{name}' is an adapter of '{bases[name].name}'.", "Unload it first, or choose another name.",
                param="lora_name",
            )  # fmt: skip
        if name not in bases and len(bases) >= self._config.max_adapters:
            raise RequestError(
                f"This server holds {self._config.max_adapters} adapters at once.",
                "Unload one, or serve with more max_adapters.", code="too_many_adapters", param="lora_name",
            )  # fmt: skip


def _known(names: Collection[str]) -> str:
    return f"There are {', '.join(repr(name) for name in names)}." if names else "There are none."


def _reply(resident: Resident, adapter: Adapter) -> Reply:
    return Reply(value={"name": adapter.name, "version": adapter.version, "model": resident.name})
