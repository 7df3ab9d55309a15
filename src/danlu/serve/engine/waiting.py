"""The queue: who comes next, how much may wait, and who is turned away when it is full.

Tenants take turns by the tokens that were computed for them (start-time fair queuing, Goyal et al. 1996): the least
served comes next, and one that comes anew starts where the least served stands, so nobody saves up turns. A full queue
is shared the same way (longest queue drop): a newcomer displaces the newest request of the tenant that holds most,
unless that is itself. Knows no pages.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Container, Iterator, Sequence

from danlu.core.errors import OverloadedError
from danlu.serve.engine.row import Row, Tenant

_RATE_WINDOW_S = 10.0
_MAX_RETRY_S = 60


class Rate:
    """Tokens computed per second of late, and the usual length of an answer."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0
        self._answers = self._answer_tokens = 0.0

    def step(self, num_tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        self._tokens, self._seconds = self._tokens + num_tokens, self._seconds + seconds
        if self._seconds > _RATE_WINDOW_S:
            self._tokens, self._seconds = self._tokens / 2, self._seconds / 2

    def answer(self, num_tokens: int) -> None:
        """An answer of so many tokens is complete."""
        self._answers, self._answer_tokens = self._answers + 1, self._answer_tokens + num_tokens
        if self._answers > 1000:
            self._answers, self._answer_tokens = self._answers / 2, self._answer_tokens / 2

    def retry_after_s(self, prompt_tokens: int, requests: int) -> int:
        """Seconds until so much work is likely to be done, 1 to 60."""
        if not self._tokens:
            return 1
        answer = self._answer_tokens / self._answers if self._answers else 0.0
        seconds = (prompt_tokens + requests * answer) * self._seconds / self._tokens
        return max(1, min(_MAX_RETRY_S, math.ceil(seconds)))


class _Lines:
    """Waiting rows of one tenant and one priority, in order of arrival."""

    __slots__ = ("long", "short")

    def __init__(self) -> None:
        self.short: OrderedDict[tuple[int, int], Row] = OrderedDict()
        self.long: OrderedDict[tuple[int, int], Row] = OrderedDict()


class WaitingQueue:
    """Rows that wait, by priority, tenant and arrival; prompts longer than ``long_tokens`` in a line of their own."""

    def __init__(self, long_tokens: int) -> None:
        self.tokens = 0
        """Tokens that wait to be computed."""
        self.tenants: dict[str, Tenant] = {}
        """Of waiting and running rows."""
        self._long_tokens = long_tokens
        self._count = 0
        self._lines: dict[int, dict[str, _Lines]] = {}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Row]:
        """The most important and the oldest first, as far as tenants do not matter."""
        rows = [row for tenants in self._lines.values() for lines in tenants.values() for row in _rows(lines)]
        return iter(sorted(rows, key=lambda row: row.rank))

    def push(self, row: Row, *, is_first: bool = False) -> None:
        """Take a row, to the end of its line or (one that was running) to the beginning."""
        tenant = self.join(row.tenant)
        if not (tenant.num_waiting or is_first):
            others = [t.served for t in self.tenants.values() if t is not tenant]
            tenant.served = max(tenant.served, min(others, default=0))
        row.share = tenant
        row.state = "waiting"
        row.is_long = len(row.ids) > self._long_tokens
        lines = self._lines.setdefault(row.priority, {}).setdefault(row.tenant, _Lines())
        line = lines.long if row.is_long else lines.short
        line[row.arrival] = row
        if is_first:
            line.move_to_end(row.arrival, last=False)
        tenant.num_waiting += 1
        row.queued_tokens = len(row.ids)
        tenant.waiting_tokens += row.queued_tokens
        self.tokens += row.queued_tokens
        self._count += 1

    def remove(self, row: Row) -> None:
        """Take a row out, from anywhere. Call ``leave`` when its tenant has nothing else."""
        tenants = self._lines[row.priority]
        lines = tenants[row.tenant]
        del (lines.long if row.is_long else lines.short)[row.arrival]
        if not (lines.long or lines.short):
            del tenants[row.tenant]
            if not tenants:
                del self._lines[row.priority]
        row.share.num_waiting -= 1
        row.share.waiting_tokens -= row.queued_tokens
        self.tokens -= row.queued_tokens
        self._count -= 1

    def best(self, *, takes_long: bool = True, but: Container[tuple[str, bool]] = ()) -> Row | None:
        """Who comes next, lines in ``but`` (tenant, whether of long prompts) passed over."""
        if not self._count:
            return None
        for priority in sorted(self._lines):
            heads = [
                next(iter(line.values()))
                for name, lines in self._lines[priority].items()
                for is_long, line in ((False, lines.short), (True, lines.long))
                if line and (takes_long or not is_long) and (name, is_long) not in but
            ]
            if heads:
                return min(heads, key=turn)
        return None

    def join(self, name: str) -> Tenant:
        """The tenant of this name."""
        tenant = self.tenants.get(name)
        if tenant is None:
            tenant = self.tenants[name] = Tenant(name)
        return tenant

    def leave(self, tenant: Tenant) -> None:
        """Forget a tenant that has nothing here any more."""
        if not (tenant.num_waiting or tenant.num_running):
            self.tenants.pop(tenant.name)

    def displace(self, rows: Sequence[Row], max_rows: int, max_tokens: int, rate: Rate) -> list[Row]:
        """Rows that have to go so that new ``rows`` of one tenant may wait; they are still in the queue.

        Raises OverloadedError (429) when there is no room that this tenant has a right to.
        """
        new_tokens = sum(len(row.ids) for row in rows)
        mine = self.tenants.get(rows[0].tenant) or Tenant(rows[0].tenant)
        count, tokens = self._count + len(rows), self.tokens + new_tokens
        held = {tenant: [tenant.num_waiting, tenant.waiting_tokens] for tenant in self.tenants.values()}
        going: dict[Row, None] = {}
        while count > max_rows or (tokens > max_tokens and count > len(rows)):
            measure = 0 if count > max_rows else 1
            want = (mine.num_waiting + len(rows), mine.waiting_tokens + new_tokens)[measure]
            most = max((t for t in held if t is not mine), key=lambda t: held[t][measure], default=None)
            victim = self._newest(most, going) if most else None
            if most is None or victim is None or held[most][measure] - (1, len(victim.ids))[measure] < want:
                raise OverloadedError(
                    f"The queue is full: {self._count} requests wait, {self.tokens} tokens.",
                    "Try again after Retry-After seconds.",
                    retry_after_s=rate.retry_after_s(self.tokens, self._count),
                )
            going[victim] = None
            held[most][0] -= 1
            held[most][1] -= len(victim.ids)
            count, tokens = count - 1, tokens - len(victim.ids)
        return list(going)

    def _newest(self, tenant: Tenant, but: dict[Row, None]) -> Row | None:
        """The newest row of a tenant's lowest priority that has not begun yet."""
        for priority in sorted(self._lines, reverse=True):
            lines = self._lines[priority].get(tenant.name)
            if lines is None:
                continue
            rows = [
                next((row for row in reversed(line.values()) if not row.preemptions and row not in but), None)
                for line in (lines.short, lines.long)
            ]
            found = [row for row in rows if row is not None]
            if found:
                return max(found, key=lambda row: row.arrival)
        return None


def turn(row: Row) -> tuple[int, int, int, tuple[int, int]]:
    """Whose prompt is read next: the lowest."""
    return row.priority, row.share.served, row.share.num_running, row.arrival


def _rows(lines: _Lines) -> Iterator[Row]:
    yield from lines.short.values()
    yield from lines.long.values()
