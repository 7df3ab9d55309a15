"""One answer in the engine, and how the tokens of a pass become the next ones of many answers.

Knows tensors and no queue: who is computed when is the scheduler's say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.core.errors import RequestError
from danlu.core.records import TokenLogprob
from danlu.models.sampling import choose, logprob_of
from danlu.models.writing import Writing
from danlu.serve.engine.beams import Beams
from danlu.serve.engine.constrain import Constraint, apply_masks
from danlu.serve.engine.lookup import Guesses
from danlu.serve.engine.request import WriteRequest
from danlu.serve.engine.ticket import EngineTicket


@dataclass(slots=True, eq=False, kw_only=True)
class Asked:
    """What the answers to one request have in common."""

    request: WriteRequest
    ticket: EngineTicket
    num_left: int
    """Answers that are not finished."""
    adapter: int = 0
    """Which adapter the linears use; 0 for none."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """Of the prompt's tokens so far; None when nobody asked."""
    beams: Beams | None = None
    """The search, when one was asked for."""


@dataclass(slots=True, eq=False, kw_only=True)
class Answer:
    """One row of the scheduler and what it is for; a row's ``request``."""

    asked: Asked
    writing: Writing
    constraint: Constraint | None = None
    """What its grammar allows next."""
    problem: RequestError | None = None
    """Why its grammar cannot be followed any further."""
    was_told: bool = False
    """Whether its first piece is out."""
    guesses: Guesses | None = None
    """What it may say next, once somebody wanted to know."""

    @property
    def is_complete(self) -> bool:
        """Whether its grammar allows nothing more."""
        return self.constraint is not None and self.constraint.is_done

    def is_noting(self, start: int) -> bool:
        """Whether log-probabilities of the prompt are wanted from token ``start`` on."""
        return self.asked.prompt_logprobs is not None and start + 1 < len(self.writing.prompt_ids)


def pick(logits: Tensor, answers: Sequence[Answer]) -> list[int]:
    """The next token of each answer, whose grammars go on with it. logits: fp32 (B, V), of which rows may be changed.

    As ``models.sampling.pick_tokens`` picks, where no grammar is in force.
    """
    steered = [row for row, answer in enumerate(answers) if not answer.writing.steering.is_idle]
    noted = [row for row, answer in enumerate(answers) if answer.writing.options.logprobs is not None]
    bound = _bound(answers)
    changed = {*steered, *(row for row, _ in bound)}
    plain = {row: logits[row].clone() if row in changed else logits[row] for row in noted}
    if bound:
        apply_masks(logits, bound)
    for row in steered:
        writing = answers[row].writing
        logits[row] = writing.steering(logits[row], writing.token_ids)
    tokens = choose(logits, [answer.writing for answer in answers])
    for row, before in plain.items():
        writing = answers[row].writing
        assert writing.options.logprobs is not None
        writing.logprobs.append(logprob_of(before, tokens[row], writing.options.logprobs))
    for row, constraint in bound:
        try:
            constraint.advance(tokens[row])
        except RequestError as error:
            answers[row].problem = error
    return tokens


def _bound(answers: Sequence[Answer]) -> list[tuple[int, Constraint]]:
    """Rows with a grammar. One whose grammar has become too much work is told so and must not fail the others."""
    found: list[tuple[int, Constraint]] = []
    for row, answer in enumerate(answers):
        if answer.constraint is None:
            continue
        try:
            if answer.constraint.is_active:
                answer.constraint.allowed()
            found.append((row, answer.constraint))
        except RequestError as error:
            answer.problem = error
    return found


def logprobs_of_prompt(logits: Tensor, following: Sequence[int], num_top: int) -> list[TokenLogprob | None]:
    """How likely each token was after those before it. logits: fp32 (T, V), of the tokens before ``following``."""
    targets = torch.tensor(following)
    logprobs = torch.log_softmax(logits.cpu(), dim=-1)
    own = logprobs.gather(1, targets.unsqueeze(1)).squeeze(1).tolist()
    best = torch.topk(logprobs, min(num_top, logprobs.shape[1]))
    tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        TokenLogprob(token_id=token, logprob=value, top=tuple(zip(ids, values, strict=True)))
        for token, value, (ids, values) in zip(following, own, tops, strict=True)
    ]
