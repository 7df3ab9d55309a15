"""Beam search: the answers of highest probability for their length, as transformers 5 finds them.

Each prompt is a search of its own; prompts meet only in the model's passes. A finished search leaves the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.core.records import Completion
from danlu.models.decoding import Rows
from danlu.models.model import Model
from danlu.models.native.sample import load_sampler
from danlu.models.writing import Writing
from danlu.text.tokenizer import TextTokenizer

Candidates = list[tuple[int, float]]
"""Tokens that a beam may say next and their log-probabilities, the likeliest first."""
_NEVER = float("-inf")
_MOST_FORBIDDEN = 64
"""Forbidden tokens up to which it is cheaper to find so many tokens more than to change scores."""


@dataclass(frozen=True)
class Beam:
    """An answer in the making and the sum of its tokens' log-probabilities."""

    token_ids: tuple[int, ...]
    logprob: float


class Search:
    """The beams of one prompt."""

    def __init__(self, writing: Writing, tokenizer: TextTokenizer | None) -> None:
        self._writing = writing
        self._options = writing.options
        self._tokenizer = tokenizer if writing.options.stop else None
        self._keep = max(2, 1 + len(writing.steering.end_ids)) * self._options.num_beams
        self.beams = [Beam((), 0.0)]
        self.finished: list[tuple[float, tuple[int, ...]]] = []
        """Score and tokens, best first."""
        self.is_over = False

    def candidates(self, beam: int, logits: Tensor) -> Candidates:
        """What may follow a beam: as many as could be among the best of all. logits: fp32 (V,)."""
        steering, answer = self._writing.steering, self.beams[beam].token_ids
        kernels = load_sampler() if logits.device.type == "cpu" else None
        forbidden = steering.forbidden(answer)
        if kernels is None or forbidden is None or len(forbidden) > _MOST_FORBIDDEN:
            logprobs = steering(torch.log_softmax(logits, dim=-1), answer)
            best = torch.topk(logprobs, min(self._keep, len(logprobs)))
            found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            return [(token, logprob) for token, logprob in found if logprob > _NEVER]
        log_sum, top = kernels.note(logits, self._keep + len(forbidden))
        allowed = [(token, value - log_sum) for token, value in top if token not in forbidden and value > _NEVER]
        return allowed[: self._keep]

    def advance(self, candidates: Sequence[Candidates]) -> list[int]:
        """One more token, out of the candidates of every beam; returns the beam each new one continues."""
        found = [
            (beam.logprob + logprob, parent, token)
            for parent, (beam, following) in enumerate(zip(self.beams, candidates, strict=True))
            for token, logprob in following
        ]
        found.sort(key=lambda one: -one[0])  # among equals the better beam's likelier token comes first
        parents: list[int] = []
        beams: list[Beam] = []
        num_beams = self._options.num_beams
        for rank, (value, parent, token) in enumerate(found[: self._keep]):
            candidate = Beam((*self.beams[parent].token_ids, token), value)
            if self._ends(candidate.token_ids):
                if rank < num_beams:  # the rest are there only so that enough beams go on
                    score = value / len(candidate.token_ids) ** self._options.length_penalty
                    self.finished.append((score, candidate.token_ids))
            elif len(beams) < num_beams:
                beams.append(candidate)
                parents.append(parent)
        self.beams = beams
        self.finished = sorted(self.finished, key=lambda one: -one[0])[:num_beams]
        self.is_over = not beams or not self._can_improve()
        return parents

    def completions(self) -> list[Completion]:
        """The best, as many as were asked for."""
        found: list[Completion] = []
        for score, token_ids in self.finished[: self._options.n]:
            writing = self._writing.again()
            for token in token_ids:
                writing.push(token)
            found.append(writing.completion(score))
        return found

    def _ends(self, token_ids: Sequence[int]) -> bool:
        if token_ids[-1] in self._writing.steering.end_ids or len(token_ids) >= self._writing.limit:
            return True
        if self._tokenizer is None:
            return False
        text = self._tokenizer.decode(token_ids)
        return any(stop in text for stop in self._options.stop)

    def _can_improve(self) -> bool:
        """Whether the best beam may still beat the worst finished answer."""
        options = self._options
        if len(self.finished) < options.num_beams:
            return True
        if options.early_stopping is True:
            return False
        to_the_end = options.early_stopping == "never" and options.length_penalty > 0.0
        length = self._writing.limit if to_the_end else len(self.beams[0].token_ids)
        return self.beams[0].logprob / length**options.length_penalty > self.finished[-1][0]


def search(model: Model, writings: Sequence[Writing]) -> list[list[Completion]]:
    """The best ``options.n`` answers to each prompt, best first; ``score`` is what they were ranked by."""
    tokenizer = model.chat.tokenizer.target if model.has_tokenizer else None
    searches = [Search(writing, tokenizer) for writing in writings]
    rows = Rows(model, writings, copies=max(w.options.num_beams for w in writings))
    running = list(searches)
    while running:
        logits = rows.logits()
        kept: list[int] = []
        first = 0
        for one in running:
            count = len(one.beams)
            parents = one.advance([one.candidates(beam, logits[first + beam]) for beam in range(count)])
            kept += [] if one.is_over else [first + parent for parent in parents]
            first += count
        running = [one for one in running if not one.is_over]
        if running:
            rows.keep(kept)
            rows.read([[beam.token_ids[-1]] for one in running for beam in one.beams])
    return [one.completions() for one in searches]
