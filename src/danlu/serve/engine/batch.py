"""The running rows and what each of them holds: pages, memory pages, a slot for states. Knows no queue and no turns."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import replace

from danlu.serve.engine.pages import PagePool, extend_keys
from danlu.serve.engine.row import UNLIMITED, Row


class Batch:
    """Rows by rank, the one that gives way last first."""

    def __init__(
        self,
        pool: PagePool,
        max_rows: int,
        *,
        has_prefixes: bool = True,
        has_pages: bool = True,
        num_slots: int | None = None,
        memory_pool: PagePool | None = None,
    ) -> None:
        """``has_pages`` is false for models without attention. Models with recurrent layers have ``num_slots`` places
        for states, which bound the rows and rule out shared prefixes. ``memory_pool`` is for encoder-decoders."""
        self.rows: list[Row] = []
        self.pool = pool
        self.max_rows = max_rows if num_slots is None else min(max_rows, num_slots)
        self.has_pages = has_pages
        self.has_prefixes = has_prefixes and has_pages and num_slots is None
        self._memory_pool = memory_pool
        self._slots = None if num_slots is None else list(reversed(range(num_slots)))
        self._places = 0  # rows, and answers they will be forked into

    @property
    def num_places(self) -> int:
        """How many more rows there may be."""
        return self.max_rows - self._places

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold so many tokens."""
        return self.pool.pages_for(num_tokens) if self.has_pages else 0

    def can_ever_fit(self, num_tokens: int, num_answers: int, memory_tokens: int) -> bool:
        """Whether such a row could run if it were alone."""
        pools = [(self.pool, self.pages_for(num_tokens)), (self._memory_pool, self._memory_pages(memory_tokens))]
        return num_answers <= self.max_rows and all(pool is None or n <= pool.num_pages for pool, n in pools)

    # rows come and go

    def find(self, row: Row) -> list[int]:
        """Pages that hold what a row begins with; at least one of its tokens is left to be computed."""
        if row.salt is None or not self.has_prefixes:
            return []
        extend_keys(row.keys, row.ids, row.salt, self.pool.page_tokens)
        return self.pool.match(row.keys, (len(row.ids) - 1) // self.pool.page_tokens) if row.reads_cache else []

    def fits(self, row: Row, found: Sequence[int], leaving: Sequence[Row] = ()) -> bool:
        """Whether a row could start now, with the pages found for it: all its tokens must have pages, and every row
        that goes on keeps its next one. ``leaving`` says as if these had left, as far as one can know before."""
        if self.num_places + sum(other.num_answers for other in leaving) < row.num_answers:
            return False
        if self._memory_pool is not None:
            free = self._memory_pool.num_free + sum(len(other.memory) for other in leaving)
            if self._memory_pages(row.memory_tokens) > free:
                return False
        free = self.pool.num_free + sum(len(other.table) for other in leaving)
        need = self.pages_for(len(row.ids)) - sum(not self.pool.is_free(page) for page in found)
        if need > free:
            return False
        staying = [other for other in self.rows if other not in leaving]
        return need + sum(other.num_answers for other in staying if other.max_tokens > other.room) <= free

    def start(self, row: Row, found: Sequence[int]) -> list[tuple[int, int]]:
        """Give a row that fits what it needs; returns the pages to copy, (source, target) each."""
        self.pool.share(found)
        row.computed = len(found) * self.pool.page_tokens
        count = self.pages_for(len(row.ids)) - len(found)
        part = self._find_part(row, len(found))
        held = [part[0]] if part else []
        self.pool.share(held)  # that it is not taken for the copy
        fresh = self.pool.allocate(count)
        self.pool.release(held)
        if fresh is None:
            fresh, part = self.pool.allocate(count), None
        assert fresh is not None, "it does not fit"
        row.table = [*found, *fresh]
        row.room = len(row.table) * self.pool.page_tokens if self.has_pages else UNLIMITED
        row.computed += part[1] if part else 0
        if not row.preemptions and self.has_prefixes:
            row.cached_tokens = row.computed
            self.pool.count_lookup(len(row.ids), row.computed)
        if self._memory_pool is not None:
            row.memory = self._memory_pool.allocate(self._memory_pages(row.memory_tokens)) or []
        if self._slots is not None:
            row.slot = self._slots.pop()
        row.state = "running"
        row.share.num_running += 1
        self._places += row.num_answers
        bisect.insort(self.rows, row, key=_rank)
        return [(part[0], fresh[0])] if part else []

    def _find_part(self, row: Row, index: int) -> tuple[int, int] | None:
        """A page that begins as page ``index`` of a row and the tokens they have in common, one less than all of the
        row's at most."""
        if row.salt is None or not (self.has_prefixes and row.reads_cache):
            return None
        size = self.pool.page_tokens
        ids = row.ids[index * size : min((index + 1) * size, len(row.ids) - 1)]
        return self.pool.match_part(self._key_before(row, index), ids)

    def _key_before(self, row: Row, index: int) -> bytes:
        assert row.salt is not None
        return row.keys[index - 1] if index else row.salt

    def stop(self, row: Row) -> None:
        """Take everything back from a row."""
        self.rows.remove(row)
        self.pool.release(row.table)
        if self._memory_pool is not None:
            self._memory_pool.release(row.memory)
        if self._slots is not None:
            self._slots.append(row.slot)
        self._places -= row.num_answers
        row.share.num_running -= 1
        row.table, row.memory, row.drafts = [], [], []
        row.computed = row.room = 0
        row.is_writing = row.is_forked = False

    # rows go on

    def lacks(self, row: Row, start: int, end: int) -> int:
        """Free pages needed before a row can write its tokens from ``start`` to ``end``."""
        table = row.table
        shared = sum(self.pool.is_shared(table[index]) for index in self._open(row, start))
        return shared + max(0, self.pages_for(end) - len(table))

    def extend(self, row: Row, start: int, end: int) -> list[tuple[int, int]]:
        """Give a row pages of its own to write there; returns the pages to copy, (source, target) each."""
        pairs = [self.pool.writable(row.table, index) for index in self._open(row, start)]
        row.is_forked = False
        if end > row.room:
            fresh = self.pool.allocate(self.pages_for(end) - len(row.table))
            assert fresh is not None, "it lacks pages"
            row.table += fresh
            row.room = len(row.table) * self.pool.page_tokens
        return [pair for pair in pairs if pair is not None]

    def commit(self, row: Row, start: int) -> None:
        """Let the pages be found that a row has filled since it had ``start`` tokens computed."""
        if row.salt is None or not self.has_prefixes:
            return
        size = self.pool.page_tokens
        extend_keys(row.keys, row.ids, row.salt, size)
        for index in range(start // size, row.computed // size):
            ids = row.ids[index * size : (index + 1) * size]
            self.pool.commit(row.table[index], row.keys[index], self._key_before(row, index), ids)

    def _open(self, row: Row, start: int) -> range:
        """Pages from ``start`` on that a row may have in common with others."""
        return range(start // self.pool.page_tokens, len(row.table)) if row.is_forked else range(0)

    # answers of one prompt

    def fork(self, row: Row, count: int) -> list[Row]:
        """``count`` more rows that go on from where ``row`` is."""
        assert row.is_writing, "its prompt is not done"
        assert count < row.num_answers, "room is kept for num_answers"
        forks = [
            replace(
                row,
                ids=list(row.ids),
                drafts=[],
                keys=list(row.keys),
                table=self.pool.fork(row.table),
                memory=[] if self._memory_pool is None else self._memory_pool.fork(row.memory),
                arrival=(row.arrival[0], index),
                num_answers=1,
                is_forked=True,
                slot=row.slot if self._slots is None else self._slots.pop(),
            )
            for index in range(1, count + 1)
        ]
        for fork in forks:
            bisect.insort(self.rows, fork, key=_rank)
        self._places -= row.num_answers - 1 - count
        row.num_answers, row.is_forked = 1, True
        row.share.num_running += count
        return forks

    def reorder(self, rows: Sequence[Row], parents: Sequence[int]) -> list[Row]:
        """``rows[i]`` goes on from what ``rows[parents[i]]`` was. Returns those that run but whose parent had to give
        its pages back: they hold nothing any more. States of recurrent layers have to be copied, from slot to slot."""
        before = [(row.ids, row.table, row.keys, row.computed, row.room) for row in rows]
        pairs = enumerate(zip(rows, parents, strict=True))
        moved = [(row, parent) for index, (row, parent) in pairs if parent != index]
        released = [row.table for row, _ in moved]
        for row, parent in moved:
            ids, table, keys, computed, room = before[parent]
            row.ids, row.keys = list(ids), list(keys)
            if row.state == "running":
                row.table, row.computed, row.room = self.pool.fork(table), computed, room
                row.is_forked = rows[parent].is_forked = True
        for table in released:
            self.pool.release(table)
        return [row for row, parent in moved if row.state == "running" and rows[parent].state != "running"]

    def _memory_pages(self, num_tokens: int) -> int:
        return 0 if self._memory_pool is None else self._memory_pool.pages_for(num_tokens)


def _rank(row: Row) -> tuple[int, tuple[int, int]]:
    return row.rank
