"""Answers of the OpenAI API: deltas and completions in, JSON bytes and server-sent events out; and its error object.

Knows nothing of requests or the engine.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec
from msgspec import UNSET, Struct, UnsetType

from danlu.core.errors import RequestError
from danlu.core.records import Completion, Delta, FinishReason, Usage

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

encode = msgspec.json.Encoder().encode


class UsageReply(Struct):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatText(Struct):
    """The message of a chat answer."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(Struct):
    """One answer to a chat."""

    index: int
    message: ChatText
    finish_reason: FinishReason
    logprobs: None = None


class ChatDelta(Struct, omit_defaults=True):
    """A piece of a chat answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Struct):
    """A piece of one answer to a chat."""

    index: int
    delta: ChatDelta
    finish_reason: FinishReason | None = None
    logprobs: None = None


class TextChoice(Struct):
    """One continuation, or a piece of it."""

    index: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: None = None


class Envelope(Struct, kw_only=True):
    """What stands around the choices; ``usage`` is absent, null or given."""

    id: str
    object: Literal["chat.completion", "chat.completion.chunk", "text_completion"]
    created: int
    model: str
    choices: Sequence[ChatChoice | ChatChunkChoice | TextChoice]
    usage: UsageReply | UnsetType | None = UNSET


class Writer(Protocol):
    """Writes one request's answer, whole or as events."""

    def whole(self, completions: Sequence[Completion]) -> bytes:
        """The body of an answer that is not streamed."""
        ...

    def open(self, num_prompts: int) -> bytes:
        """Events that come before the first piece."""
        ...

    def piece(self, index: int, delta: Delta) -> bytes:
        """Events for a piece of answer ``index``."""
        ...

    def close(self, usage: Usage) -> bytes:
        """Events that end the stream."""
        ...


class _Writer:
    """The parts both kinds of answer share."""

    def __init__(self, prefix: str, model: str, *, includes_usage: bool) -> None:
        self._id = f"{prefix}-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = model
        self._includes_usage = includes_usage

    def _chunk(self, kind: Literal["chat.completion.chunk", "text_completion"], *choices: ChatChunkChoice | TextChoice):
        usage = None if self._includes_usage else UNSET
        envelope = Envelope(
            id=self._id, object=kind, created=self._created, model=self._model, choices=choices, usage=usage
        )
        return event(envelope)

    def _body(
        self,
        kind: Literal["chat.completion", "text_completion"],
        choices: list[ChatChoice | ChatChunkChoice | TextChoice],
        usage: Usage,
    ) -> bytes:
        envelope = Envelope(
            id=self._id, object=kind, created=self._created, model=self._model, choices=choices, usage=_usage(usage)
        )
        return encode(envelope)

    def _end(self, kind: Literal["chat.completion.chunk", "text_completion"], usage: Usage) -> bytes:
        if not self._includes_usage:
            return DONE
        envelope = Envelope(
            id=self._id, object=kind, created=self._created, model=self._model, choices=(), usage=_usage(usage)
        )
        return event(envelope) + DONE


class ChatWriter(_Writer):
    """Answers of /v1/chat/completions."""

    def __init__(self, model: str, *, includes_usage: bool) -> None:
        super().__init__("chatcmpl", model, includes_usage=includes_usage)

    def whole(self, completions: Sequence[Completion]) -> bytes:
        """The body of an answer that is not streamed."""
        choices: list[ChatChoice | ChatChunkChoice | TextChoice] = [
            ChatChoice(i, ChatText(answer.text), answer.finish_reason) for i, answer in enumerate(completions)
        ]
        return self._body("chat.completion", choices, total_usage(completions))

    def open(self, num_prompts: int) -> bytes:
        """The role of each answer."""
        roles = (ChatChunkChoice(i, ChatDelta("assistant", "")) for i in range(num_prompts))
        return b"".join(self._chunk("chat.completion.chunk", role) for role in roles)

    def piece(self, index: int, delta: Delta) -> bytes:
        """The text, then the finish reason in a chunk of its own."""
        events = b""
        if delta.text:
            events = self._chunk("chat.completion.chunk", ChatChunkChoice(index, ChatDelta(content=delta.text)))
        if delta.finish_reason is not None:
            events += self._chunk("chat.completion.chunk", ChatChunkChoice(index, ChatDelta(), delta.finish_reason))
        return events

    def close(self, usage: Usage) -> bytes:
        """The usage chunk where it was asked for, then the end mark."""
        return self._end("chat.completion.chunk", usage)


class CompletionWriter(_Writer):
    """Answers of /v1/completions."""

    def __init__(self, model: str, *, includes_usage: bool) -> None:
        super().__init__("cmpl", model, includes_usage=includes_usage)

    def whole(self, completions: Sequence[Completion]) -> bytes:
        """The body of an answer that is not streamed."""
        choices: list[ChatChoice | ChatChunkChoice | TextChoice] = [
            TextChoice(i, answer.text, answer.finish_reason) for i, answer in enumerate(completions)
        ]
        return self._body("text_completion", choices, total_usage(completions))

    def open(self, num_prompts: int) -> bytes:
        """Nothing: continuations have no role."""
        return b""

    def piece(self, index: int, delta: Delta) -> bytes:
        """The text, with the finish reason on the last one."""
        if not delta.text and delta.finish_reason is None:
            return b""
        return self._chunk("text_completion", TextChoice(index, delta.text, delta.finish_reason))

    def close(self, usage: Usage) -> bytes:
        """The usage chunk where it was asked for, then the end mark."""
        return self._end("text_completion", usage)


def event(value: Struct) -> bytes:
    """One server-sent event."""
    return b"data: " + encode(value) + b"\n\n"


def total_usage(completions: Sequence[Completion]) -> Usage:
    """The sum over the answers of one request."""
    return Usage(
        prompt_tokens=sum(c.usage.prompt_tokens for c in completions),
        completion_tokens=sum(c.usage.completion_tokens for c in completions),
    )


def _usage(usage: Usage) -> UsageReply:
    return UsageReply(usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens + usage.completion_tokens)


class ErrorDetail(Struct):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Struct):
    """The error object every failed request gets."""

    error: ErrorDetail


class Model(Struct):
    """One served model; ``context_length`` is our addition."""

    id: str
    created: int
    context_length: int
    object: Literal["model"] = "model"
    owned_by: Literal["danlu"] = "danlu"


class ModelList(Struct):
    """GET /v1/models."""

    data: list[Model]
    object: Literal["list"] = "list"


def error_reply(error: RequestError) -> ErrorReply:
    """The error object; its ``type`` follows from the status."""
    if error.status == 429:
        kind = "rate_limit_error"
    elif error.status == 401:
        kind = "authentication_error"
    else:
        kind = "invalid_request_error" if error.status < 500 else "server_error"
    return ErrorReply(ErrorDetail(str(error), kind, error.param, error.code))
