"""A model that is not one: it writes into every place of a page a hash of all tokens up to there, so that a page which
holds the wrong thing is noticed."""

import random
from collections.abc import Callable
from typing import Any

from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.pages import PagePool, cache_salt
from danlu.serve.engine.row import Plan, Row
from danlu.serve.engine.scheduler import Scheduler


class World:
    """A scheduler and what it schedules; rows end when they have ``max_tokens``. One step takes a second."""

    def __init__(
        self, num_pages: int = 64, page_tokens: int = 4, *, seed: int = 0, num_slots: int | None = None, **config: Any
    ) -> None:
        defaults = {"max_rows": 4, "step_tokens": 16, "max_waiting": 1000, "max_waiting_tokens": 10**9}
        self.pool = PagePool(num_pages, page_tokens)
        self.scheduler = Scheduler(EngineConfig(**{**defaults, **config}), self.pool, num_slots=num_slots)
        self.random = random.Random(seed)
        self.now = 0.0
        self.done: list[Row] = []
        self.computed_tokens = 0
        self.pick: Callable[[Row], int] = lambda row: self.random.randrange(5)
        self._held: dict[tuple[int, int], int] = {}

    def row(self, prompt: int | list[int], answer: int = 4, *, tenant: str = "", salt: str = "", **fields: Any) -> Row:
        """A row, not added yet; a number stands for a prompt of so many random tokens."""
        ids = [self.random.randrange(1000) for _ in range(prompt)] if isinstance(prompt, int) else list(prompt)
        return Row(
            ids=ids, max_tokens=len(ids) + answer, tenant=tenant, salt=cache_salt(tenant, salt), **fields
        )  # fmt: skip

    def add(self, prompt: int | list[int], answer: int = 4, **fields: Any) -> Row:
        row = self.row(prompt, answer, **fields)
        self.scheduler.add([row], self.now)
        return row

    def plan(self) -> Plan:
        """Plan and compute, without picking tokens."""
        self.now += 1.0
        plan = self.scheduler.plan(self.now)
        copied = {
            (target, place): self._held[(source, place)]
            for source, target in plan.copies
            for place in range(self.pool.page_tokens)
            if (source, place) in self._held
        }
        assert len({target for _, target in plan.copies}) == len(plan.copies)
        self._held.update(copied)
        for piece in plan.pieces:
            assert piece.num_tokens > 0
            assert len(piece.token_ids) == piece.num_tokens
            assert piece.row.state == "running"
            self._compute(piece.row, piece.start, list(piece.token_ids))
        assert len({id(piece.row) for piece in plan.pieces}) == len(plan.pieces), "one piece a row"
        self.scheduler.complete(plan, self.now + 0.5)
        return plan

    def step(self) -> Plan:
        """Plan, compute, pick a token for every row that got to its end."""
        plan = self.plan()
        for piece in plan.pieces:
            if piece.is_last and piece.row.state == "running":
                self.push(piece.row, piece.num_drafts)
        return plan

    def push(self, row: Row, num_drafts: int = 0) -> None:
        """Pick the next token of a row, some of its drafts accepted."""
        if row.drafts:
            self.scheduler.accept(row, min(self.random.randint(0, num_drafts), row.max_tokens - len(row.ids) - 1))
        row.ids.append(self.pick(row))
        if len(row.ids) >= row.max_tokens:
            self.check_row(row)
            self.scheduler.finish(row)
            self.done.append(row)

    def run(self, max_steps: int = 10_000) -> list[Plan]:
        """Step until nothing is left."""
        plans: list[Plan] = []
        while self.scheduler.has_work:
            assert len(plans) < max_steps, "it does not end"
            plans.append(self.step())
            assert plans[-1].pieces or plans[-1].refused, "a step that does nothing"
        return plans

    def check(self) -> None:
        """The books are right, and no more than allowed is running."""
        scheduler = self.scheduler
        self.pool.check([row.table for row in scheduler.rows()])
        running = list(scheduler.running)
        assert running == sorted(running, key=lambda row: row.rank)
        places = sum(row.num_answers for row in running)
        assert scheduler.batch.num_places == scheduler.batch.max_rows - places >= 0
        assert scheduler.waiting.tokens == sum(row.queued_tokens for row in scheduler.waiting)
        tenants = scheduler.waiting.tenants
        assert set(tenants) == {row.tenant for row in scheduler.rows()}
        for name, tenant in tenants.items():
            assert tenant.num_running == sum(row.tenant == name for row in running)
            assert tenant.num_waiting == sum(row.tenant == name for row in scheduler.waiting)
        for row in running:
            assert row.state == "running"
            assert row.computed <= len(row.ids)
            assert row.computed <= row.room == len(row.table) * self.pool.page_tokens

    def check_row(self, row: Row) -> None:
        """Its pages hold what its tokens say."""
        before = 0
        for index, token in enumerate(row.ids[: row.computed]):
            before = hash((before, token))
            assert self._held[self._place(row, index)] == before, f"token {index} of {row.computed} is not there"

    def _compute(self, row: Row, start: int, ids: list[int]) -> None:
        before = self._held[self._place(row, start - 1)] if start else 0
        for index, token in enumerate(ids, start):
            before = hash((before, token))
            assert not self.pool.is_shared(row.table[index // self.pool.page_tokens]), "others read this page"
            self._held[self._place(row, index)] = before
        self.computed_tokens += len(ids)

    def _place(self, row: Row, index: int) -> tuple[int, int]:
        return row.table[index // self.pool.page_tokens], index % self.pool.page_tokens
