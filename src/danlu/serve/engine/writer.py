"""The write lane: answers of one model, a step at a time. Who is computed when is the scheduler's say; what a request
asks for is in prepare.py; how tokens are picked in answer.py.

Owned by the engine's thread. Knows no sockets and no other models.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from danlu.core.errors import OverloadedError, RequestError
from danlu.core.records import Delta
from danlu.models.adapters import Factors
from danlu.models.executor import Executor
from danlu.models.paged import PAGE, MemoryPages, Segment
from danlu.serve.engine.answer import Answer, logprobs_of_prompt, pick, pick_in_turn
from danlu.serve.engine.beams import Beams
from danlu.serve.engine.prepare import Prepared
from danlu.serve.engine.request import ModelStatus
from danlu.serve.engine.row import Piece, Plan, Row
from danlu.serve.engine.scheduler import Scheduler
from danlu.serve.engine.speculate import Speculator
from danlu.serve.engine.spelling import Spelling
from danlu.serve.engine.tally import Tally
from danlu.serve.engine.ticket import EngineTicket, too_late

_PROMPT_ROWS = 64
"""Rows of logits at a time when log-probabilities of prompts are asked for: all of a step would be large."""


class Writer:
    """Answers being written with one model."""

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        spelling: Spelling | None,
        speculator: Speculator | None = None,
    ) -> None:
        """``spelling`` is None for models without a tokenizer, ``speculator`` where nothing is to be guessed."""
        self._executor = executor
        self._speculator = speculator
        self._spelling = spelling
        self._scheduler = scheduler
        self._open: dict[EngineTicket, list[Row]] = {}
        self._tally = Tally()

    # requests

    def add(self, prepared: Prepared, now: float) -> None:
        """Queue a request; one that finds the queue full hears so, and so does one that has to leave it for this."""
        asked = prepared.asked
        try:
            displaced = self._scheduler.add([prepared.row], now)
        except OverloadedError as error:
            asked.ticket.close(error)
            return
        self._open[asked.ticket] = [prepared.row]
        for row in displaced:
            error = OverloadedError(
                "The queue is full, and others have waited for less.", "Try again after Retry-After seconds.",
                retry_after_s=self._scheduler.retry_after_s(),
            )  # fmt: skip
            self._end(_answer(row).asked.ticket, error)

    def cancel(self, ticket: EngineTicket) -> None:
        """Drop a request; it hears what was certain of each answer. Does nothing for one that is not here."""
        rows = self._open.get(ticket)
        if rows is None:
            return
        writings = list(dict.fromkeys(_answer(row).writing for row in rows))
        not_begun = [writings[0].again(sample) for sample in range(len(writings), writings[0].options.n)]
        for writing in (*writings, *not_begun):
            if writing.finish_reason is None:
                ticket.tell(writing.abort())
        self._drop(ticket)
        ticket.is_closed = True

    def fail(self, error: RequestError) -> None:
        """End all that run; those that wait go on."""
        running = {_answer(row).asked.ticket for row in self._scheduler.running}
        for ticket in running:
            self._end(ticket, error)

    def fail_all(self, error: RequestError) -> None:
        """End every request."""
        for ticket in list(self._open):
            self._end(ticket, error)

    def put_adapter(self, slot: int, factors: Factors) -> None:
        """Set what rows with this adapter add from the next step on; no factors empty the slot."""
        self._executor.put_adapter(slot, factors)

    @property
    def tickets(self) -> Sequence[EngineTicket]:
        """Of requests that are not finished."""
        return list(self._open)

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self._open)

    # a step

    @torch.inference_mode()
    def step(self, now: float) -> None:
        """Compute what the scheduler says and hand out what came of it."""
        started = time.perf_counter()
        for row in self._scheduler.sweep(now):
            self._end(_answer(row).asked.ticket, too_late())
        if self._speculator is not None:
            self._speculator.propose(self._scheduler.running)
        plan = self._scheduler.plan(now)
        for row in plan.refused:
            self._end(_answer(row).asked.ticket, _no_room())
        self._welcome(plan, now)
        if not plan.pieces:
            return
        segments, ids, outs, picks = self._lay_out(plan)
        planned = time.perf_counter()
        self._executor.cache.copy_pages(plan.copies, _needed(plan))
        if any(_answer(piece.row).is_noting(piece.start) for piece in plan.pieces):
            logits = self._with_prompts(plan, ids, segments, outs)
        else:
            logits = self._executor.run(ids, segments, outs)
        computed = time.perf_counter()
        self._scheduler.complete(plan, time.monotonic())
        only_answers = self._count(plan)
        self._take(picks, logits)
        ended = time.perf_counter()
        if only_answers and self._speculator is not None:
            self._speculator.costs.note(len(ids), ended - started)
        self._tally.seconds["scheduling"] += planned - started
        self._tally.seconds["model"] += computed - planned
        self._tally.seconds["sampling"] += ended - computed

    def _welcome(self, plan: Plan, now: float) -> None:
        """Encode the sources of rows that were admitted, and note how long they waited."""
        for row in plan.admitted:
            answer = _answer(row)
            if row.memory_tokens:
                source = answer.writing.source_ids
                assert source is not None
                self._executor.remember([source], [MemoryPages(row.memory, len(source))])
            if row.preemptions:
                continue
            answer.writing.cached_tokens = row.cached_tokens
            self._tally.tokens["cached"] += row.cached_tokens
            self._tally.waited(now - row.added_at)

    def _lay_out(self, plan: Plan) -> tuple[list[Segment], list[int], list[int], list[tuple[Piece, int]]]:
        """Segments, token ids, tokens whose logits are needed, and the first of these of every piece that ends."""
        segments: list[Segment] = []
        ids: list[int] = []
        outs: list[int] = []
        picks: list[tuple[Piece, int]] = []
        for piece in plan.pieces:
            row, start, count, is_last = piece
            memory = MemoryPages(row.memory, row.memory_tokens) if row.memory_tokens else None
            segments.append(Segment(row.table, start, count, row.slot, memory, _answer(row).asked.adapter))
            ids += piece.token_ids
            if is_last:
                picks.append((piece, len(outs)))
                outs += range(len(ids) - 1 - piece.num_drafts, len(ids))
        return segments, ids, outs, picks

    def _with_prompts(self, plan: Plan, ids: Sequence[int], segments: Sequence[Segment], outs: Sequence[int]) -> Tensor:
        """Logits of ``outs``; on the way, how likely the tokens of prompts were."""
        hidden = self._executor.hidden(ids, segments, range(len(ids)))
        first = 0
        for piece in plan.pieces:
            answer = _answer(piece.row)
            noted, prompt = answer.asked.prompt_logprobs, answer.writing.prompt_ids
            following = prompt[piece.start + 1 : piece.start + piece.num_tokens + 1]
            if noted is not None and following:
                del noted[piece.start + 1 :]  # a row that had to start over says it all again
                num_top = answer.asked.request.prompt_logprobs or 0
                for at in range(0, len(following), _PROMPT_ROWS):
                    some = following[at : at + _PROMPT_ROWS]
                    logits = self._executor.logits(hidden[first + at : first + at + len(some)])
                    noted += logprobs_of_prompt(logits, some, num_top)
            first += piece.num_tokens
        return self._executor.logits(hidden[torch.tensor(outs, dtype=torch.long, device=hidden.device)])

    # what came of it

    def _take(self, picks: Sequence[tuple[Piece, int]], logits: Tensor) -> None:
        """Next tokens of all rows whose last token was computed. logits: (M, V)."""
        plain: list[tuple[Row, int]] = []
        for piece, out in picks:
            row = piece.row
            if row.state != "running":
                continue
            answer = _answer(row)
            if answer.asked.beams is not None:
                self._hear_beam(answer.asked.beams, row, logits[out])
            elif piece.num_drafts:
                self._check_drafts(row, logits[out : out + piece.num_drafts + 1])
            else:
                plain += [(one, out) for one in self._siblings(row)]
        if not plain:
            return
        outs = [out for _, out in plain]
        whole = outs == list(range(logits.shape[0]))
        chosen = logits if whole else logits[torch.tensor(outs, device=logits.device)]
        for (row, _), token in zip(plain, pick(chosen, [_answer(row) for row, _ in plain]), strict=True):
            self._push(row, token)

    def _siblings(self, row: Row) -> list[Row]:
        """The row, and on the way out of the prompt the other answers to it."""
        answer = _answer(row)
        count = row.num_answers - 1
        if count < 1:
            return [row]
        forks = self._scheduler.fork(row, count)
        self._copy_states(forks, [row] * len(forks))
        for sample, fork in enumerate(forks, start=1):
            writing = answer.writing.again(sample)
            writing.cached_tokens = answer.writing.cached_tokens
            constraint = None if answer.constraint is None else answer.constraint.fork()
            fork.request = Answer(asked=answer.asked, writing=writing, constraint=constraint)
        self._open[answer.asked.ticket] += forks
        return [row, *forks]

    def _copy_states(self, rows: Sequence[Row], parents: Sequence[Row]) -> None:
        """States of recurrent layers: each running row goes on from its parent's."""
        pairs = [(parent.slot, row.slot) for row, parent in zip(rows, parents, strict=False) if row.state == "running"]
        self._executor.cache.copy_slots([(source, target) for source, target in pairs if source != target])

    def _push(self, row: Row, token: int) -> bool:
        """Take a token; whether the answer goes on."""
        answer = _answer(row)
        if answer.problem is not None:
            self._end(answer.asked.ticket, answer.problem)
            return False
        delta = answer.writing.push(token, is_complete=answer.is_complete)
        self._tally.tokens["generated"] += 1
        if delta.finish_reason is None:
            row.ids.append(token)
        if delta.text or delta.logprobs or delta.finish_reason is not None:
            self._tell(row, answer, delta)
        return delta.finish_reason is None

    def _tell(self, row: Row, answer: Answer, delta: Delta) -> None:
        asked = answer.asked
        if asked.prompt_logprobs is not None and not answer.was_told:
            delta = replace(delta, prompt_logprobs=tuple(asked.prompt_logprobs))
        answer.was_told = True
        if self._spelling is not None and (delta.logprobs or delta.prompt_logprobs):
            prompt = answer.writing.prompt_ids[:1] if delta.prompt_logprobs else ()
            named = self._spelling.of((*delta.logprobs, *delta.prompt_logprobs), prompt)
            delta = replace(delta, token_bytes=named)
        if delta.finish_reason is None:
            asked.ticket.tell(delta)
            return
        self._scheduler.finish(row)
        asked.num_left -= 1
        if asked.num_left:
            asked.ticket.tell(delta)
        else:
            self._open.pop(asked.ticket, None)
            asked.ticket.close(delta)

    def _check_drafts(self, row: Row, logits: Tensor) -> None:
        """Take guesses as long as they are what would have been picked, and one token more. logits: (1 + drafts, V)."""
        answer, drafts = _answer(row), list(row.drafts)
        self._tally.tokens["drafted"] += len(drafts)
        for accepted, token in enumerate(pick_in_turn(logits, answer)):
            if accepted == len(drafts) or token != drafts[accepted] or answer.problem is not None:
                self._scheduler.accept(row, accepted)
                self._push(row, token)
                break
            delta = answer.writing.push(token, is_complete=answer.is_complete)
            self._tally.tokens["generated"] += 1
            self._tally.tokens["accepted"] += 1
            if delta.finish_reason is not None:
                self._scheduler.accept(row, accepted + 1)
                self._tell(row, answer, delta)
                break
            if delta.text or delta.logprobs:
                self._tell(row, answer, delta)

    # beams

    def _hear_beam(self, beams: Beams, row: Row, logits: Tensor) -> None:
        """Note what one beam says next; once all have spoken, the search goes on."""
        if not beams.rows:  # the prompt's own row: the beams begin as copies of it
            forks = self._scheduler.fork(row, row.num_answers - 1)
            self._copy_states(forks, [row] * len(forks))
            self._open[_answer(row).asked.ticket] += forks
            beams.rows = [row, *forks]
        parents = beams.hear(row, logits)
        if parents is None:
            return
        if beams.search.is_over:
            self._end_beams(beams)
            return
        self._scheduler.reorder(beams.rows, [*parents, *range(len(parents), len(beams.rows))])
        self._copy_states(beams.rows, [beams.rows[parent] for parent in parents])
        for one, beam in zip(beams.rows, beams.search.beams, strict=False):
            one.ids.append(beam.token_ids[-1])
        self._tally.tokens["generated"] += len(parents)

    def _end_beams(self, beams: Beams) -> None:
        asked = _answer(beams.rows[0]).asked
        for row in beams.rows:
            self._scheduler.finish(row)
        self._open.pop(asked.ticket, None)
        deltas = beams.deltas(asked.request.options.n, _answer(beams.rows[0]).writing.cached_tokens)
        if isinstance(deltas, RequestError):
            asked.ticket.close(deltas)
            return
        for delta in deltas:
            asked.ticket.tell(delta)
        asked.ticket.is_closed = True

    # the end of a request

    def _end(self, ticket: EngineTicket, error: RequestError) -> None:
        self._drop(ticket)
        ticket.close(error)

    def _drop(self, ticket: EngineTicket) -> None:
        for row in self._open.pop(ticket, ()):
            self._scheduler.abort(row)

    def _count(self, plan: Plan) -> bool:
        """Whether no prompt was read."""
        decoded = sum(1 for piece in plan.pieces if piece.start >= len(_answer(piece.row).writing.prompt_ids))
        if decoded:
            self._tally.steps[decoded] += 1
        for piece in plan.pieces:
            self._tally.tokens["prompt"] += max(
                0, min(piece.num_tokens, len(_answer(piece.row).writing.prompt_ids) - piece.start)
            )
        return decoded == len(plan.pieces)

    def status(self) -> ModelStatus:
        """How it is doing; from any thread."""
        scheduler = self._scheduler
        return self._tally.status(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            waiting_tokens=scheduler.waiting.tokens,
            preemptions=scheduler.num_preemptions,
            cache_usage=scheduler.batch.pool.usage,
        )


def _answer(row: Row) -> Answer:
    return row.request


def _needed(plan: Plan) -> list[int]:
    """Tokens of each copied page that are read: those before the ones that are written there now."""
    pieces = [piece for piece in plan.pieces if piece.row.table] if plan.copies else []
    starts = {piece.row.table[piece.start // PAGE]: piece.start % PAGE for piece in pieces}
    return [starts.get(target, PAGE) for _, target in plan.copies]


def _no_room() -> RequestError:
    return RequestError(
        "The key/value cache has no room for this answer.", "Ask for fewer tokens, or serve with more cache_tokens.",
        code="context_length_exceeded",
    )  # fmt: skip
