"""POST /v1/completions: texts or token ids to continue, and to score.

Knows nothing of how answers are written (see replies/completions.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, cast

from msgspec import Meta

from danlu.core.errors import RequestError
from danlu.serve.engine.request import Caller, ServedModel, WriteRequest
from danlu.serve.http.config import HttpConfig
from danlu.serve.http.protocol.parse import Int64, TokenId
from danlu.serve.http.protocol.sampling import ResponseFormat, Sampling


class CompletionRequest(Sampling, kw_only=True):
    """POST /v1/completions."""

    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | bool | None = None
    best_of: Int64 | None = None
    response_format: ResponseFormat | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None

    @property
    def num_answers(self) -> int:
        """Answers that each prompt gets back."""
        return 1 if self.n is None else self.n

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest tokens to tell at each place; None for no log-probabilities."""
        if isinstance(self.logprobs, bool):
            return 1 if self.logprobs else None
        return self.logprobs

    @property
    def only_scores(self) -> bool:
        """Whether the prompt is to be scored and nothing written."""
        return self.max_tokens == 0 and bool(self.echo)

    def to_writes(self, model: ServedModel, caller: Caller, config: HttpConfig) -> list[WriteRequest]:
        """One request for each prompt."""
        prompts = self._prompts(config.max_prompts)
        num_drawn = self._num_drawn()
        most = config.default_max_tokens if self.max_tokens is None else self.max_tokens
        ranks = num_drawn > self.num_answers
        logprobs = 0 if ranks and self.num_logprobs is None else self.num_logprobs
        options = self.options(1 if self.only_scores else most, model.context_length, logprobs, num_drawn)
        request = WriteRequest(
            model=model.name,
            prompt="",
            options=options,
            caller=caller,
            grammar=self.grammar(self.response_format),
            prompt_logprobs=self.num_logprobs if self.echo else self.prompt_logprobs,
            cache_salt=self.cache_salt or "",
        )
        return [replace(request, prompt=prompt) for prompt in prompts]

    def _num_drawn(self) -> int:
        drawn = self.num_answers if self.best_of is None else self.best_of
        if drawn < self.num_answers:
            raise RequestError(
                f"best_of is {drawn}, fewer than n, {self.num_answers}.", "Raise it, or leave it out.", param="best_of"
            )
        if drawn > self.num_answers and self.is_stream:
            raise RequestError(
                f"best_of is {drawn} in a stream.", "The best are known at the end: do not stream.", param="best_of"
            )
        return drawn

    def _prompts(self, max_prompts: int) -> list[str | list[int]]:
        """One prompt per text or list of token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        kinds = {type(item) for item in self.prompt}
        if len(kinds) > 1:
            raise RequestError(
                "prompt mixes texts and token ids.", "Send a text, texts, token ids, or lists of them.", param="prompt"
            )
        if kinds == {int}:
            return [cast("list[int]", self.prompt)]
        if len(self.prompt) > max_prompts:
            raise RequestError(
                f"prompt has {len(self.prompt)} prompts.", f"Send at most {max_prompts} at a time.", param="prompt"
            )
        return list(cast("list[str | list[int]]", self.prompt))
