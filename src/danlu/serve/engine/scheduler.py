"""Which tokens of which rows are computed in the next step.

One budget of tokens a step: every row that writes gets its next token, prompts are read in pieces with what is left.
Rows are ranked by priority and arrival: who ranks last gives its pages back when there are not enough and starts over
later, so the first always gets on. Reading and admission go by priority, then by turns of tenants. Pure bookkeeping:
knows no tensors, no texts and no threads; whoever calls it must be one thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from danlu.serve.engine.batch import Batch
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.pages import PagePool
from danlu.serve.engine.row import NEVER, Piece, Plan, Row
from danlu.serve.engine.waiting import Rate, WaitingQueue, turn


class Scheduler:
    """Rows that wait, read and write.

    One turn: ``plan``, compute what it says, ``complete``, then append what was picked to the rows' ``ids`` (and
    ``accept`` drafts that were right), ``finish`` those that end.
    """

    def __init__(
        self,
        config: EngineConfig,
        pool: PagePool,
        *,
        has_pages: bool = True,
        num_slots: int | None = None,
        memory_pool: PagePool | None = None,
    ) -> None:
        """See ``Batch`` for what models need."""
        self.batch = Batch(
            pool,
            config.max_rows,
            has_prefixes=config.prefix_cache,
            has_pages=has_pages,
            num_slots=num_slots,
            memory_pool=memory_pool,
        )
        self.waiting = WaitingQueue(config.step_tokens // 2)
        self.num_preemptions = 0
        self._config = config
        self._arrivals = 0
        self._first_deadline = NEVER
        self._rate = Rate()

    # requests

    @property
    def running(self) -> Sequence[Row]:
        """Rows that read or write, by rank."""
        return self.batch.rows

    def rows(self) -> Iterator[Row]:
        """All of them, running and waiting."""
        yield from self.batch.rows
        yield from self.waiting

    @property
    def has_work(self) -> bool:
        """Whether anybody waits, or runs with tokens to compute."""
        return len(self.waiting) > 0 or any(row.computed < len(row.ids) for row in self.batch.rows)

    def can_ever_fit(self, num_tokens: int, num_answers: int = 1, memory_tokens: int = 0) -> bool:
        """Whether an answer could be written if it were alone: ``num_tokens`` of prompt and answer together."""
        return self.batch.can_ever_fit(num_tokens, num_answers, memory_tokens)

    def add(self, rows: Sequence[Row], now: float) -> list[Row]:
        """Queue the rows of one request, all or none. Those that could start at once do not count as waiting.

        Returns rows of other tenants that had to leave the queue for them (they are done; tell them what a full queue
        tells). Raises OverloadedError when the queue is full.
        """
        assert all(row.state == "new" and row.ids for row in rows)
        displaced = self.waiting.displace(
            rows, self._config.max_waiting + self.batch.num_places, self._config.max_waiting_tokens, self._rate
        )
        for row in displaced:
            self.abort(row)
        for row in rows:
            self._arrivals += 1
            row.arrival = (self._arrivals, 0)
            row.prompt_tokens = len(row.ids)
            row.added_at = now
            self._first_deadline = min(self._first_deadline, row.deadline)
            self.waiting.push(row)
        return displaced

    def retry_after_s(self) -> int:
        """Seconds until what waits now is likely to be done, 1 to 60."""
        return self._rate.retry_after_s(self.waiting.tokens, len(self.waiting))

    def finish(self, row: Row) -> None:
        """The answer is complete: give everything back. Does nothing for a row that is done."""
        if row.state == "running":
            self._rate.answer(len(row.ids) - row.prompt_tokens)
        self.abort(row)

    def abort(self, row: Row) -> None:
        """Drop a row, wherever it is. Does nothing for a row that is done."""
        if row.state == "waiting":
            self.waiting.remove(row)
        elif row.state == "running":
            self.batch.stop(row)
        else:
            return
        row.state = "done"
        self.waiting.leave(row.share)

    def sweep(self, now: float) -> list[Row]:
        """Drop the rows whose deadline has passed, and return them."""
        if now < self._first_deadline:
            return []
        late = [row for row in self.rows() if row.deadline <= now]
        for row in late:
            self.abort(row)
        self._first_deadline = min((row.deadline for row in self.rows()), default=NEVER)
        return late

    def fork(self, row: Row, count: int) -> list[Row]:
        """``count`` more answers of a running row, which share its pages so far. Call it when its prompt is done.

        With recurrent layers the states have to be copied: from ``row.slot`` to the slot of each.
        """
        return self.batch.fork(row, count)

    def reorder(self, rows: Sequence[Row], parents: Sequence[int]) -> None:
        """Beams: ``rows[i]`` goes on from what ``rows[parents[i]]`` was, ``ids`` (a new list) included.

        Rows that had to give way may be among them. Beams that wait for each other hold pages, so all beams of a prompt
        must fit together when they are alone. With recurrent layers the states have to be copied, too.
        """
        for row in self.batch.reorder(rows, parents):
            self._preempt(row)

    # steps

    def plan(self, now: float, step_tokens: int | None = None) -> Plan:
        """What to compute next; prompts and guesses get what ``step_tokens`` (by default the configured number) leave.

        Every row that writes is in it, except when there are not enough pages; drafts that find no room are dropped.
        Empty only if there is nothing to do.
        """
        plan = Plan(now)
        budget = self._config.step_tokens if step_tokens is None else step_tokens
        used = self._plan_writers(plan, budget)
        self._plan_readers(plan, budget - used)
        if not (plan.pieces or plan.refused) and budget > 0 and len(self.waiting):
            self._make_way(plan, budget)
        return plan

    def complete(self, plan: Plan, now: float) -> None:
        """The plan was computed. Rows that were dropped meanwhile stay dropped."""
        self._rate.step(plan.num_tokens, now - plan.started_at)
        page_tokens = self.batch.pool.page_tokens
        for row, start, count, is_last in plan.pieces:
            if row.state != "running":
                continue
            end = start + count
            if is_last:
                end = min(end, len(row.ids))  # drafts are not right yet
                row.is_writing = True
            row.computed = end
            if start // page_tokens != end // page_tokens:
                self.batch.commit(row, start)

    def accept(self, row: Row, count: int) -> None:
        """The first ``count`` drafts of a row were right: they become its tokens. The others are forgotten."""
        assert row.state == "running"
        start = row.computed
        row.ids += row.drafts[:count]
        row.computed += count
        row.drafts = []
        self.batch.commit(row, start)

    # answers

    def _plan_writers(self, plan: Plan, budget: int) -> int:
        """The next token of every row that writes, and its drafts while the budget lasts; returns tokens planned."""
        writers = [row for row in self.batch.rows if row.is_writing]
        spare = budget - len(writers)
        if len(self.waiting) or len(writers) < len(self.batch.rows):
            spare //= 2  # guesses leave half of it to prompts
        used = 0
        for row in writers:
            start = row.computed
            count = len(row.ids) - start
            if count != 1 or row.drafts:
                if count <= 0 or not row.is_writing:
                    continue  # it waits for its siblings, or had to give way just now
                extra = max(0, min(count + len(row.drafts) - 1, spare))
                spare -= extra
                del row.drafts[max(0, 1 + extra - count) :]
                count = 1 + extra
            end = start + count
            if (end > row.room or row.is_forked) and not self._make_room(row, start, end, plan):
                continue
            used += count
            row.share.served += count
            plan.pieces.append(Piece(row, start, count, end >= len(row.ids)))
        return used

    def _make_room(self, row: Row, start: int, end: int, plan: Plan) -> bool:
        """Give a running row pages to write to, those of the last rows if need be. False when it had to give way."""
        if not row.is_writing:
            return False
        while self.batch.lacks(row, start, end) > self.batch.pool.num_free:
            last = self.batch.rows[-1]
            if len(self.batch.rows) == 1:
                self.abort(row)
                plan.refused.append(row)
                return False
            self._preempt(last)
            plan.preempted.append(last)
            if last is row:
                return False
        plan.copies += self.batch.extend(row, start, end)
        return True

    def _preempt(self, row: Row) -> None:
        """Send a running row back to the queue. What it computed can be found until its pages are taken."""
        self.batch.stop(row)
        row.preemptions += 1
        self.num_preemptions += 1
        self.waiting.push(row, is_first=True)

    def _make_way(self, plan: Plan, left: int) -> None:
        """Nobody can go on, since rows that wait for their siblings hold what these need: the last rows give way until
        the first of those that wait can run."""
        row = next(iter(self.waiting))
        while row.state == "waiting" and not self._admit(row, self.batch.find(row), plan) and self.batch.rows:
            plan.preempted.append(self.batch.rows[-1])
            self._preempt(self.batch.rows[-1])
        if row.state == "running":
            self._read(plan, row, min(row.pending, left), set())

    # prompts

    def _plan_readers(self, plan: Plan, left: int) -> None:
        """Pieces of prompts, in turn. One long prompt a step leaves half of what it could have to short ones."""
        readers = [row for row in self.batch.rows if not row.is_writing and row.computed < len(row.ids)]
        can_admit = not plan.preempted
        touched: set[bytes] = set()  # keys of pages that are being computed
        deferred: set[tuple[str, bool]] = set()
        long_row: Row | None = None
        while left > 0 and (readers or (can_admit and len(self.waiting))):
            mine = readers if long_row is None else [row for row in readers if not self._is_long(row)]
            row = min(mine, key=turn, default=None)
            next_row = self.waiting.best(takes_long=long_row is None, but=deferred) if can_admit else None
            if next_row is not None and (row is None or turn(next_row) < turn(row)):
                row = next_row
                found = self.batch.find(row)  # again in every step that it waits: others may have left more
                if self._is_computed_now(row, found, touched):
                    deferred.add((row.tenant, row.is_long))
                    continue
                if not self._admit(row, found, plan):
                    can_admit = False
                    continue
                readers = [reader for reader in readers if reader.state == "running"]
            elif row is not None:
                readers.remove(row)
            else:
                break
            count = min(row.pending, left)
            if self._is_long(row) and (readers or (can_admit and len(self.waiting))):
                long_row = row
                count = min(count, left - left // 2)
            left -= count
            self._read(plan, row, count, touched)
        if long_row is not None and left > 0:
            self._read_more(plan, long_row, left)

    def _read(self, plan: Plan, row: Row, count: int, touched: set[bytes]) -> None:
        """Plan a piece of a prompt."""
        row.share.served += count
        end = row.computed + count
        plan.pieces.append(Piece(row, row.computed, count, end == len(row.ids)))
        touched.update(row.keys[row.computed // self.batch.pool.page_tokens : self.batch.pages_for(end)])

    def _read_more(self, plan: Plan, row: Row, left: int) -> None:
        """Make the piece of a row longer, with what others left over."""
        for index, piece in enumerate(plan.pieces):
            if piece.row is row:
                count = min(row.pending, piece.num_tokens + left)
                row.share.served += count - piece.num_tokens
                plan.pieces[index] = Piece(row, piece.start, count, count == row.pending)

    def _is_long(self, row: Row) -> bool:
        return row.pending > self._config.step_tokens // 2

    def _is_computed_now(self, row: Row, found: Sequence[int], touched: set[bytes]) -> bool:
        """Whether the page that a waiting row needs next is computed in this very step, for another one."""
        page, most = len(found), (len(row.ids) - 1) // self.batch.pool.page_tokens
        return row.reads_cache and page < min(most, len(row.keys)) and row.keys[page] in touched

    def _admit(self, row: Row, found: Sequence[int], plan: Plan) -> bool:
        """Let a waiting row run, or say that it cannot now. Rows of lower priority give way to it."""
        batch = self.batch
        lower = [other for other in batch.rows if other.priority > row.priority]
        if not batch.fits(row, found, lower):
            if len(lower) == len(batch.rows):  # not even alone
                self.abort(row)
                plan.refused.append(row)
            return False
        while not batch.fits(row, found):
            if not lower or batch.rows[-1] is not lower[-1]:
                return False  # they had more in common than it seemed
            last = lower.pop()
            plan.copies = [pair for pair in plan.copies if pair[1] not in last.table]
            self._preempt(last)
            plan.preempted.append(last)
            plan.pieces = [piece for piece in plan.pieces if piece.row is not last]
        self.waiting.remove(row)
        plan.copies += batch.start(row, found)
        plan.admitted.append(row)
        return True
