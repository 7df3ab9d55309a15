"""How options change what a model would say next: penalties, bias, what is forbidden and what is forced.

Scores are those of one place, (V,): logits, or log-probabilities in a beam search. Functions change them in place; none
draws.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from danlu.core.errors import RequestError
from danlu.core.records import GenerateOptions
from danlu.models.defaults import GenerationDefaults
from danlu.models.history import History, repeated

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
        self._prompt_ids = prompt_ids
        self._history: History | None = None
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
        self._only_forbids = (
            options.repetition_penalty == 1.0
            and not (options.presence_penalty or options.frequency_penalty or options.logit_bias)
        )  # fmt: skip

    def forbidden(self, answer: Sequence[int]) -> set[int] | None:
        """Tokens that must not follow ``answer``, where scores stay as they are otherwise; None where they change.

        For many answers that take turns: it remembers nothing of the last one.
        """
        if not self._only_forbids or self._forced(answer):
            return None
        found: set[int] = set()
        if self._options.no_repeat_ngram_size:
            found |= repeated([*self._prompt_ids, *answer], self._options.no_repeat_ngram_size)
        if self._banned:
            found |= completing([*self._prompt_ids, *answer], self._banned)
        if len(answer) < self._options.min_tokens:
            found |= self._held_back
        return found

    def _forced(self, answer: Sequence[int]) -> Collection[int]:
        """Tokens of which one must follow; none for any. The last ones outdo the first."""
        if self.last and len(answer) == self._limit - 1:
            return self.last
        return () if answer else self._first

    def __call__(self, scores: Tensor, answer: Sequence[int]) -> Tensor:
        """Scores of the token after ``answer``, (V,) → (V,); the input stays as it is.

        An answer that only grew since the last call, being the same list, costs nothing for its length.
        """
        if self.is_idle:
            return scores
        options, scores = self._options, scores.clone()
        history = self._history = self._history or History(self._prompt_ids, options.no_repeat_ngram_size)
        history.follow(answer)
        if options.repetition_penalty != 1.0:
            penalise_repetition(scores, history.seen, options.repetition_penalty)
        if options.presence_penalty or options.frequency_penalty:
            cost = options.presence_penalty + options.frequency_penalty * history.counts
            scores.index_add_(0, history.answer_tokens.to(scores.device), -cost.to(scores))
        if options.logit_bias:
            add_bias(scores, options.logit_bias)
        if options.no_repeat_ngram_size:
            forbid(scores, history.repeated)
        if self._banned:
            forbid(scores, completing(history.ids, self._banned))
        if len(answer) < options.min_tokens:
            forbid(scores, self._held_back)
        if forced := self._forced(answer):
            force(scores, forced)
        return scores


def penalise_repetition(scores: Tensor, seen: Tensor, penalty: float) -> None:
    """Scores of ``seen`` divided by the penalty, negative ones multiplied (CTRL; Keskar et al. 2019, section 4.1)."""
    seen = seen.to(scores.device)
    found = scores[seen]
    scores.index_copy_(0, seen, torch.where(found < 0, found * penalty, found / penalty))


def add_bias(scores: Tensor, bias: Mapping[int, float]) -> None:
    """Raises RequestError for a token id that the model does not have."""
    wrong = [token for token in bias if not 0 <= token < len(scores)]
    if wrong:
        raise RequestError(
            f"logit_bias has token id {wrong[0]}.", f"Ids are 0 to {len(scores) - 1}.", param="logit_bias"
        )
    where = torch.tensor(list(bias), dtype=torch.long, device=scores.device)
    scores.index_add_(0, where, torch.tensor(list(bias.values()), dtype=scores.dtype, device=scores.device))


def forbid(scores: Tensor, token_ids: Collection[int]) -> None:
    """These never."""
    known = [token for token in token_ids if token < len(scores)]
    scores.index_fill_(0, torch.tensor(known, dtype=torch.long, device=scores.device), _NEVER)


def force(scores: Tensor, token_ids: Collection[int]) -> None:
    """One of these, each as good as the others: 0 for them, as a certain token's log-probability is."""
    where = torch.tensor(list(token_ids), dtype=torch.long, device=scores.device)
    scores.fill_(_NEVER).index_fill_(0, where, 0.0)


def completing(ids: Sequence[int], sequences: Sequence[Sequence[int]]) -> set[int]:
    """Last tokens of those sequences of which ``ids`` ends with all the rest."""
    return {s[-1] for s in sequences if len(s) == 1 or tuple(ids[-(len(s) - 1) :]) == tuple(s[:-1])}
