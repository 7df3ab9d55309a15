"""One answer in the engine, and how the tokens of a pass become the next ones of many answers.

Knows tensors and no queue: who is computed when is the scheduler's say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.core.errors import RequestError
from danlu.core.records import TokenLogprob
from danlu.models.sampling import choose, is_filtered, logprob_of
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
    bound = [(row, answer.constraint) for row, answer in enumerate(answers) if answer.constraint is not None]
    changed = {*steered, *(row for row, _ in bound)}
    plain = {row: logits[row].clone() if row in changed else logits[row] for row in noted}
    for row in steered:
        writing = answers[row].writing
        logits[row] = writing.steering(logits[row], writing.token_ids)
    _mask(logits, [pair for pair in bound if is_filtered(answers[pair[0]].writing.options)], answers)
    tokens = choose(logits, [answer.writing for answer in answers])
    _keep_within(bound, tokens, logits, answers)
    for row, before in plain.items():
        writing = answers[row].writing
        assert writing.options.logprobs is not None
        writing.logprobs.append(logprob_of(before, tokens[row], writing.options.logprobs))
    return tokens


def pick_in_turn(logits: Tensor, answer: Answer) -> Iterator[int]:
    """The next tokens of one answer, one after the other, as ``pick`` would: row i of logits (B, V) is for the answer
    with the first i of them. A token that nobody asks for is not picked."""
    answers = [answer] * len(logits)
    if not answer.writing.is_plain:
        for row in range(len(logits)):
            yield pick(logits[row : row + 1], [answer])[0]
        return
    tokens = choose(logits, [answer.writing] * len(logits))
    for row in range(len(tokens)):
        if answer.constraint is not None:
            _keep_within([(row, answer.constraint)], tokens, logits, answers)
        yield tokens[row]


def _keep_within(
    bound: Sequence[tuple[int, Constraint]], tokens: list[int], logits: Tensor, answers: Sequence[Answer]
) -> None:
    """Advance the grammars; tokens that these do not allow are chosen again, among those they do.

    For the likeliest token, and for a draw from all tokens, that is the same as choosing among the allowed ones from
    the start (rejection sampling), and most tokens are allowed, which is far less work to see than which ones all are.
    """
    refused = [(row, constraint) for row, constraint in bound if not _take(constraint, tokens[row], answers[row])]
    if not refused:
        return
    _mask(logits, refused, answers)
    rows = [row for row, _ in refused]
    others = choose(logits[torch.tensor(rows, device=logits.device)], [answers[row].writing for row in rows])
    for (row, constraint), token in zip(refused, others, strict=True):
        tokens[row] = token
        try:
            constraint.advance(token)
        except RequestError as error:
            answers[row].problem = error


def _take(constraint: Constraint, token: int, answer: Answer) -> bool:
    """Whether the answer can go on with its token, or has a problem."""
    try:
        return answer.problem is not None or constraint.take(token)
    except RequestError as error:
        answer.problem = error
        return True


def _mask(logits: Tensor, bound: Sequence[tuple[int, Constraint]], answers: Sequence[Answer]) -> None:
    """One whose grammar has become too much work is told so and must not fail the others."""
    ready: list[tuple[int, Constraint]] = []
    for row, constraint in bound:
        try:
            if constraint.is_active:
                constraint.allowed()
                ready.append((row, constraint))
        except RequestError as error:
            answers[row].problem = error
    apply_masks(logits, ready)


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
