"""Answers of /v1/completions: texts with integer log-probabilities, the prompt echoed where that was asked for.

Knows nothing of requests or the engine.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from danlu.core.errors import RequestError
from danlu.core.records import Delta, FinishReason, TokenLogprob, Usage
from danlu.serve.http.flight import Answer
from danlu.serve.http.replies.logprobs import TextLogprobs, TextLogprobsWriter, joined
from danlu.serve.http.replies.shared import DONE, UsageReply, encode, error_reply, event, token_text, usage_reply
from danlu.serve.http.version import FINGERPRINT


class TextChoice(Struct, kw_only=True):
    """One continuation, or a piece of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: FinishReason | None = None
    prompt_logprobs: list[dict[str, float] | None] | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class Completions(Struct, kw_only=True):
    """The answer of /v1/completions, or a chunk of its stream; ``usage`` is absent, null or given."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str = FINGERPRINT
    choices: Sequence[TextChoice]
    usage: UsageReply | UnsetType | None = UNSET


@dataclass(frozen=True, kw_only=True)
class CompletionShape:
    """What the answers to one request look like."""

    model: str
    num_answers: int
    """Answers of each prompt that go back to the client."""
    num_drawn: int
    """Answers of each prompt that are written; the best of them go back."""
    echoes: tuple[str, ...]
    """Text of each prompt, where it is to stand before the answer."""
    num_logprobs: int | None
    """Likeliest tokens told at each place; None for no log-probabilities."""
    only_scores: bool
    """Whether the answer itself is left out, the prompt being all that was asked for."""
    tells_prompt: bool
    """Whether the prompt's log-probabilities go back in a field of their own."""
    includes_usage: bool
    includes_ids: bool = False
    """Whether the tokens' ids go back beside their text."""


class CompletionWriter:
    """Answers of /v1/completions."""

    def __init__(self, shape: CompletionShape) -> None:
        self._shape = shape
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._logprobs: dict[int, TextLogprobsWriter] = {}
        self._prompts: dict[int, tuple[tuple[TokenLogprob | None, ...], dict[int, bytes]]] = {}
        self._opened: set[int] = set()

    def whole(self, answers: list[Answer], usage: Usage) -> bytes:
        """The body of an answer that is not streamed."""
        drawn, kept = self._shape.num_drawn, self._shape.num_answers
        choices: list[TextChoice] = []
        for start in range(0, len(answers), drawn):
            group = answers[start : start + drawn]
            for answer in group:
                if answer.prompt_logprobs:
                    self._prompts.setdefault(start // drawn, (answer.prompt_logprobs, answer.token_bytes))
            if kept < drawn:
                group = sorted(group, key=_mean_logprob, reverse=True)[:kept]
            choices += [self._choice(len(choices) + i, start // drawn, answer) for i, answer in enumerate(group)]
        if self._shape.only_scores:
            usage = Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=0, cached_tokens=usage.cached_tokens)
        return encode(self._envelope(choices, usage_reply(usage)))

    def _choice(self, index: int, prompt: int, answer: Answer) -> TextChoice:
        shape = self._shape
        text, logprobs = "", None
        if shape.echoes:
            text, logprobs = shape.echoes[prompt], self._prompt_logprobs(index, prompt)
        if shape.only_scores:
            return TextChoice(index=index, text=text, logprobs=logprobs, finish_reason="length")
        if shape.num_logprobs is not None:
            own = self._of(index).take(answer.logprobs, answer.token_bytes)
            logprobs = own if logprobs is None else joined(logprobs, own)
        choice = TextChoice(index=index, text=text + answer.text, logprobs=logprobs, finish_reason=answer.finish_reason)
        if shape.includes_ids:
            choice.token_ids = answer.token_ids
        if shape.tells_prompt and prompt in self._prompts:
            tokens, names = self._prompts[prompt]
            choice.prompt_logprobs = [_by_text(token, names) for token in tokens]
        return choice

    def _of(self, index: int) -> TextLogprobsWriter:
        assert self._shape.num_logprobs is not None
        return self._logprobs.setdefault(index, TextLogprobsWriter(self._shape.num_logprobs))

    def _prompt_logprobs(self, index: int, prompt: int) -> TextLogprobs | None:
        if self._shape.num_logprobs is None or prompt not in self._prompts:
            return None
        tokens, names = self._prompts[prompt]
        return self._of(index).prompt(self._shape.echoes[prompt], tokens, names)

    def open(self) -> bytes:
        """Nothing: continuations have no role."""
        return b""

    def piece(self, index: int, delta: Delta) -> bytes:
        """The text, with the finish reason on the last one; the prompt before the first one where it is echoed."""
        shape, prompt = self._shape, index // self._shape.num_drawn
        if delta.prompt_logprobs:
            self._prompts.setdefault(prompt, (delta.prompt_logprobs, dict(delta.token_bytes)))
        events = b""
        if shape.echoes and index not in self._opened:
            self._opened.add(index)
            echo = TextChoice(index=index, text=shape.echoes[prompt], logprobs=self._prompt_logprobs(index, prompt))
            events = event(self._envelope((echo,), None if shape.includes_usage else UNSET))
        if shape.only_scores:
            delta = Delta(text="", finish_reason="length" if delta.finish_reason else None)
        tells_ids = shape.includes_ids and delta.token_ids
        if not delta.text and delta.finish_reason is None and not delta.logprobs and not tells_ids:
            return events
        logprobs = None
        if shape.num_logprobs is not None and delta.logprobs:
            logprobs = self._of(index).take(delta.logprobs, delta.token_bytes)
        choice = TextChoice(index=index, text=delta.text, logprobs=logprobs, finish_reason=delta.finish_reason)
        if tells_ids:
            choice.token_ids = list(delta.token_ids)
        return events + event(self._envelope((choice,), None if shape.includes_usage else UNSET))

    def close(self, usage: Usage) -> bytes:
        """The usage chunk where it was asked for, then the end mark."""
        if not self._shape.includes_usage:
            return DONE
        return event(self._envelope((), usage_reply(usage))) + DONE

    def broken(self, error: RequestError) -> bytes:
        """The error; no end mark follows it."""
        return event(error_reply(error))

    def _envelope(self, choices: Sequence[TextChoice], usage: UsageReply | UnsetType | None) -> Completions:
        return Completions(
            id=self._id, created=self._created, model=self._shape.model, choices=choices, usage=usage
        )  # fmt: skip


def _mean_logprob(answer: Answer) -> float:
    return sum(token.logprob for token in answer.logprobs) / max(1, len(answer.logprobs))


def _by_text(token: TokenLogprob | None, names: dict[int, bytes]) -> dict[str, float] | None:
    if token is None:
        return None
    found = {token_text(names.get(token.token_id, b"")): max(token.logprob, -9999.0)}
    for index, logprob in token.top:
        found.setdefault(token_text(names.get(index, b"")), max(logprob, -9999.0))
    return found
