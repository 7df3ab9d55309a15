"""How options change what a model would say next: penalties, bias, what is forbidden and what is forced.

Every function takes and gives scores of one place, (V,): logits, or log-probabilities in a beam search. None draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from danlu.core.errors import RequestError
from danlu.core.records import GenerateOptions
from danlu.models.defaults import GenerationDefaults

_NEVER = float("-inf")


class Steering:
    """The rules of one request, in the order in which they apply."""

    def __init__(
        self,
        options: GenerateOptions,
        defaults: GenerationDefaults,
        prompt_ids: Sequence[int],
        limit: int,
        *,
        is_answer_alone: bool,
    ) -> None:
        """``limit`` is the most tokens the answer may have; ``is_answer_alone`` says that the prompt is only where an
        encoder-decoder's answer starts."""
        self._options = options
        self._prompt_ids = list(prompt_ids)
        self._limit = limit
        self.end_ids = frozenset(options.stop_token_ids) | (frozenset() if options.ignore_eos else defaults.end_ids)
        """Tokens that end the answer."""
        self._held_back = self.end_ids | defaults.end_ids
        self._banned = defaults.banned
        self._first = defaults.first_ids if is_answer_alone else ()
        self.last = () if options.ignore_eos else defaults.last_ids
        """What an answer that reaches its limit ends with; empty for anything."""
        self.is_idle = (
            options.repetition_penalty == 1.0
            and not (options.presence_penalty or options.frequency_penalty or options.logit_bias)
            and not (options.no_repeat_ngram_size or options.min_tokens)
            and not (self._banned or self._first or self.last)
        )
        """Whether no rule is in force."""

    def __call__(self, scores: Tensor, answer: Sequence[int]) -> Tensor:
        """Scores of the token after ``answer``, (V,) → (V,); the input stays as it is."""
        if self.is_idle:
            return scores
        options, ids = self._options, [*self._prompt_ids, *answer]
        if options.repetition_penalty != 1.0:
            scores = penalise_repetition(scores, ids, options.repetition_penalty)
        if options.presence_penalty or options.frequency_penalty:
            scores = penalise_counts(scores, answer, options.presence_penalty, options.frequency_penalty)
        if options.logit_bias:
            scores = add_bias(scores, options.logit_bias)
        if options.no_repeat_ngram_size:
            scores = forbid(scores, repeated(ids, options.no_repeat_ngram_size))
        if self._banned:
            scores = forbid(scores, completing(ids, self._banned))
        if len(answer) < options.min_tokens:
            scores = forbid(scores, self._held_back)
        if self._first and not answer:
            scores = force(scores, self._first)
        if self.last and len(answer) == self._limit - 1:
            scores = force(scores, self.last)
        return scores


def penalise_repetition(scores: Tensor, ids: Sequence[int], penalty: float) -> Tensor:
    """Scores of ``ids`` divided by the penalty, negative ones multiplied (CTRL; Keskar et al. 2019, section 4.1)."""
    seen = torch.tensor(sorted(set(ids)), dtype=torch.long, device=scores.device)
    found = scores[seen]
    return scores.index_copy(0, seen, torch.where(found < 0, found * penalty, found / penalty))


def penalise_counts(scores: Tensor, answer: Sequence[int], presence: float, frequency: float) -> Tensor:
    """As OpenAI's API defines it: minus frequency · count - presence for every token that the answer has."""
    counts = Counter(answer)
    seen = torch.tensor(list(counts), dtype=torch.long, device=scores.device)
    cost = torch.tensor([presence + frequency * count for count in counts.values()], device=scores.device)
    return scores.index_add(0, seen, -cost.to(scores.dtype))


def add_bias(scores: Tensor, bias: Mapping[int, float]) -> Tensor:
    """Raises RequestError for a token id that the model does not have."""
    wrong = [token for token in bias if not 0 <= token < len(scores)]
    if wrong:
        raise RequestError(
            f"logit_bias has token id {wrong[0]}.", f"Ids are 0 to {len(scores) - 1}.", param="logit_bias"
        )
    where = torch.tensor(list(bias), dtype=torch.long, device=scores.device)
    values = torch.tensor(list(bias.values()), dtype=scores.dtype, device=scores.device)
    return scores.index_add(0, where, values)


def forbid(scores: Tensor, token_ids: Collection[int]) -> Tensor:
    """These never."""
    where = torch.tensor([token for token in token_ids if token < len(scores)], dtype=torch.long, device=scores.device)
    return scores.index_fill(0, where, _NEVER)


def force(scores: Tensor, token_ids: Collection[int]) -> Tensor:
    """One of these, each as good as the others: 0 for them, as a certain token's log-probability is."""
    where = torch.tensor(list(token_ids), dtype=torch.long, device=scores.device)
    return torch.full_like(scores, _NEVER).index_fill(0, where, 0.0)


def repeated(ids: Sequence[int], size: int) -> set[int]:
    """Tokens that would end a sequence of ``size`` tokens that ``ids`` already has."""
    before = tuple(ids[len(ids) - size + 1 :])
    starts = range(len(ids) - size + 1) if len(before) == size - 1 else range(0)
    return {ids[start + size - 1] for start in starts if tuple(ids[start : start + size - 1]) == before}


def completing(ids: Sequence[int], sequences: Sequence[Sequence[int]]) -> set[int]:
    """Last tokens of those sequences of which ``ids`` ends with all the rest."""
    return {s[-1] for s in sequences if len(s) == 1 or tuple(ids[-(len(s) - 1) :]) == tuple(s[:-1])}
