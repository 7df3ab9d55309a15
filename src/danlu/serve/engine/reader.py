"""The single-pass lane: texts and images of one model that are embedded, classified, tagged or scored.

Every step packs what waits into one pass under a budget of tokens. Priorities go first; then the tenant for whom least
was read (start-time fair queuing, Goyal et al. 1996); its requests take turns, some tokens a turn, so a request of a
thousand texts holds up nobody. What a request becomes and how it is answered is in reading.py. Owned by the engine's
thread, but for ``prepare`` and ``status``.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from danlu.core.errors import DanluError, OverloadedError
from danlu.core.records import Usage
from danlu.models.encode import Row, run_rows
from danlu.models.images import ImageProcessor
from danlu.models.model import Model
from danlu.models.pair import PairNetwork, read_images
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.reading import PreparedRead, ReadLimits, ReadPreparer
from danlu.serve.engine.request import ModelStatus, ReadRequest
from danlu.serve.engine.tally import Tally
from danlu.serve.engine.ticket import EngineTicket, cancelled, too_late
from danlu.serve.engine.waiting import Rate
from danlu.serve.engine.write_lane import ALL_THREADS

__all__ = ["PreparedRead", "ReadLane"]

_TURN_TOKENS = 128
"""What a request may read before the next one's turn comes, unless one text is longer."""
_PACK_TOKENS = 1024
"""Tokens that run together: rows of like length waste least, and what is in the cache of the processor stays there."""


class _Entry:
    """A request in the lane."""

    def __init__(self, prepared: PreparedRead, ticket: EngineTicket, now: float) -> None:
        self.prepared = prepared
        self.ticket = ticket
        self.arrived = now
        order = sorted(range(len(prepared.pieces)), key=lambda piece: -prepared.costs[piece])
        self.unread = deque(order)
        """Pieces that no pass has taken, the longest first."""
        self.unread_tokens = prepared.num_tokens
        self.outputs: dict[int, Tensor] = {}

    @property
    def has_begun(self) -> bool:
        return len(self.unread) < len(self.prepared.pieces)


class ReadLane:
    """What waits to be read by one model."""

    def __init__(
        self,
        model: Model,
        name: str,
        config: EngineConfig | None = None,
        processor: ImageProcessor | None = None,
        limits: ReadLimits | None = None,
    ) -> None:
        """``processor`` prepares images, for models that take them."""
        self._model = model
        self._config = config or EngineConfig()
        self._preparer = ReadPreparer(model, name, processor, limits)
        self._entries: dict[EngineTicket, _Entry] = {}
        self._lines: dict[int, dict[str, deque[_Entry]]] = {}
        """Requests with something unread, by priority and tenant; the first of a line has its next turn."""
        self._served: dict[str, int] = {}
        """Tokens read for each tenant in the lines; one that comes anew starts where the least served stands."""
        self._under_way: dict[_Entry, None] = {}
        self._unread_tokens = 0
        self._rate = Rate()
        self._tally = Tally()

    # in any thread

    def prepare(self, request: ReadRequest) -> PreparedRead:
        """Check, tokenise and cut into rows. Raises RequestError for what the model cannot do or read."""
        return self._preparer.prepare(request)

    def status(self) -> ModelStatus:
        """How it is doing."""
        entries = list(self._entries.values())
        begun = sum(entry.has_begun for entry in entries)
        return self._tally.status(
            running=begun, waiting=len(entries) - begun, waiting_tokens=self._unread_tokens
        )  # fmt: skip

    # requests

    def add(self, prepared: PreparedRead, ticket: EngineTicket, now: float) -> None:
        """Queue a request. One that finds the queue full hears OverloadedError (429), unless a tenant who holds more
        of it than this one has one to give up: then that one does."""
        entry = _Entry(prepared, ticket, now)
        going = self._displaced(entry)
        for victim in [entry] if going is None else going:
            overloaded = OverloadedError(
                f"The queue is full: {len(self._entries)} requests wait, {self._unread_tokens} tokens.",
                "Try again after Retry-After seconds.",
                retry_after_s=self._rate.retry_after_s(self._unread_tokens, len(self._entries)),
            )
            if victim is entry:
                ticket.close(overloaded)
                return
            self._end(victim, overloaded)
        self._entries[ticket] = entry
        self._unread_tokens += entry.unread_tokens
        self._line_up(entry)

    def cancel(self, ticket: EngineTicket) -> None:
        """Drop a request, which hears so; does nothing for one that is not here."""
        entry = self._entries.get(ticket)
        if entry is not None:
            self._end(entry, cancelled())

    def fail(self, error: DanluError) -> None:
        """End the requests of the pass that failed; those that were not in it go on."""
        for entry in list(self._under_way):
            self._end(entry, error)
        self._under_way.clear()

    def fail_all(self, error: DanluError) -> None:
        """End every request."""
        for entry in list(self._entries.values()):
            self._end(entry, error)
        self._under_way.clear()

    def sweep(self, now: float) -> None:
        """End requests that nobody wants any more, or whose time is over."""
        for entry in list(self._entries.values()):
            if entry.ticket.is_cancelled:
                self._end(entry, cancelled())
            elif now >= entry.ticket.deadline:
                self._end(entry, too_late())

    @property
    def tickets(self) -> Sequence[EngineTicket]:
        """Of requests that are not finished."""
        return list(self._entries)

    @property
    def has_work(self) -> bool:
        """Whether anything waits."""
        return bool(self._entries)

    def ready_at(self, now: float) -> float | None:
        """When a step is due: at once for a full pass or what has begun, else a short wait after the oldest came."""
        if not self._entries:
            return None
        if self._unread_tokens >= self._config.read_tokens:
            return now
        oldest = next(iter(self._entries.values()))
        return now if oldest.has_begun else oldest.arrived + self._config.read_wait_ms / 1000

    # a step

    def step(self, now: float, budget_tokens: int | None = None) -> int:
        """One pass of at most ``budget_tokens`` (none for the config's), or one longer text; the tokens it read."""
        started = time.perf_counter()
        self.sweep(now)
        chosen = list(self._choose(budget_tokens or self._config.read_tokens))
        if not chosen:
            return 0
        self._welcome(chosen, now)
        tokens = sum(entry.prepared.costs[piece] for entry, piece in chosen)
        begun = time.perf_counter()
        self._read(chosen)
        ended = time.perf_counter()
        self._tally.tokens["prompt"] += tokens
        self._tally.steps[len(chosen)] += 1
        self._rate.step(tokens, ended - begun)
        self._tally.seconds["model"] += ended - begun
        for entry in self._under_way:
            if len(entry.outputs) == len(entry.prepared.pieces):
                outputs = [entry.outputs[piece] for piece in range(len(entry.outputs))]
                usage = Usage(prompt_tokens=entry.prepared.num_tokens, completion_tokens=0)
                del self._entries[entry.ticket]
                entry.ticket.close(entry.prepared.finish(outputs, usage))
        self._under_way.clear()
        self._tally.seconds["scheduling"] += begun - started + time.perf_counter() - ended
        return tokens

    def _choose(self, budget_tokens: int) -> Iterator[tuple[_Entry, int]]:
        """Pieces of the next pass; the first is taken however long it is."""
        room = budget_tokens
        is_first = True
        for priority in sorted(self._lines):
            tenants = dict.fromkeys(self._lines[priority])
            while room > 0 and tenants:
                tenant = min(tenants, key=self._served.__getitem__)
                entry = self._next(self._lines[priority][tenant], None if is_first else room)
                if entry is None:
                    del tenants[tenant]
                    continue
                costs, taken = entry.prepared.costs, 0
                while entry.unread and taken < _TURN_TOKENS and (is_first or costs[entry.unread[0]] <= room):
                    piece = entry.unread.popleft()
                    is_first = False
                    taken += costs[piece]
                    room -= costs[piece]
                    yield entry, piece
                entry.unread_tokens -= taken
                self._unread_tokens -= taken
                self._served[tenant] += taken
                if not entry.unread:
                    self._leave_line(entry)
                    if tenant not in self._lines.get(priority, ()):
                        del tenants[tenant]

    def _next(self, line: deque[_Entry], room: int | None) -> _Entry | None:
        """The request of a tenant whose turn it is, among those with a piece that fits; it goes to the line's end."""
        for place, entry in enumerate(line):
            if room is None or entry.prepared.costs[entry.unread[0]] <= room:
                del line[place]
                line.append(entry)
                return entry
        return None

    def _welcome(self, chosen: Sequence[tuple[_Entry, int]], now: float) -> None:
        """Note whose pass it is, and how long they waited for their first."""
        counts = Counter(entry for entry, _ in chosen)
        self._under_way = dict.fromkeys(counts)
        for entry, count in counts.items():
            if count + len(entry.unread) == len(entry.prepared.pieces):
                wait = max(0.0, now - entry.arrived)
                self._tally.waited(wait)

    @torch.inference_mode()
    def _read(self, chosen: Sequence[tuple[_Entry, int]]) -> None:
        """One pass over rows, and one over the images of each size."""
        by_kind: dict[object, list[tuple[_Entry, int]]] = {}
        for entry, piece in chosen:
            read = entry.prepared.pieces[piece]
            by_kind.setdefault(read.shape if isinstance(read, Tensor) else None, []).append((entry, piece))
        for kind, members in by_kind.items():
            read = [entry.prepared.pieces[piece] for entry, piece in members]
            if kind is None:
                threads = self._config.threads or ALL_THREADS
                outputs = run_rows(self._model, cast("list[Row]", read), _PACK_TOKENS, num_threads=threads)
            else:
                outputs = self._read_images(torch.stack(cast("list[Tensor]", read)))
            for (entry, piece), output in zip(members, outputs, strict=True):
                entry.outputs[piece] = output.float().cpu()

    def _read_images(self, pixels: Tensor) -> list[Tensor]:
        """(B, C, height, width) → B vectors (P,) or logits (C,)."""
        network = self._model.network
        network = network.image if isinstance(network, PairNetwork) else network
        return list(read_images(network, pixels.to(network.device)))

    # the queue

    def _line_up(self, entry: _Entry) -> None:
        caller = entry.ticket.caller
        self._served.setdefault(caller.tenant, min(self._served.values(), default=0))
        self._lines.setdefault(caller.priority, {}).setdefault(caller.tenant, deque()).append(entry)

    def _leave_line(self, entry: _Entry) -> None:
        caller = entry.ticket.caller
        tenants = self._lines.get(caller.priority, {})
        line = tenants.get(caller.tenant)
        if line is None or entry not in line:
            return
        line.remove(entry)
        if not line:
            del tenants[caller.tenant]
        if not tenants:
            del self._lines[caller.priority]
        if not any(caller.tenant in others for others in self._lines.values()):
            self._served.pop(caller.tenant, None)

    def _end(self, entry: _Entry, error: DanluError) -> None:
        self._leave_line(entry)
        self._unread_tokens -= entry.unread_tokens
        self._entries.pop(entry.ticket, None)
        entry.ticket.close(error)

    def _displaced(self, new: _Entry) -> list[_Entry] | None:
        """Requests that have to leave a full queue for a new one: the newest that have not begun, of the tenant who
        holds most (longest queue drop). None when nobody holds more than the new one's tenant would."""
        config, mine = self._config, new.ticket.caller.tenant
        left = list(self._entries.values())
        tokens = self._unread_tokens + new.unread_tokens
        going: list[_Entry] = []
        while left and (len(left) >= config.max_waiting or tokens > config.max_waiting_tokens):
            by_tokens = len(left) < config.max_waiting
            held: Counter[str] = Counter({mine: new.unread_tokens if by_tokens else 1})
            newest: dict[str, _Entry] = {}
            for entry in left:
                tenant = entry.ticket.caller.tenant
                held[tenant] += entry.unread_tokens if by_tokens else 1
                if not entry.has_begun:
                    newest[tenant] = entry
            most = max((tenant for tenant in newest if tenant != mine), key=lambda tenant: held[tenant], default=None)
            if most is None or held[most] - (newest[most].unread_tokens if by_tokens else 1) < held[mine]:
                return None
            going.append(newest[most])
            left.remove(newest[most])
            tokens -= newest[most].unread_tokens
        return going
