"""What all answers share: usage, the error object, server-sent events.

Knows nothing of requests or the engine.
"""

from __future__ import annotations

from typing import Protocol

import msgspec
from msgspec import Struct

from danlu.core.errors import RequestError
from danlu.core.records import Delta, Usage
from danlu.serve.http.flight import Answer

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

encode = msgspec.json.Encoder().encode


class PromptDetails(Struct):
    """Of the prompt's tokens."""

    cached_tokens: int


class UsageReply(Struct):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


def usage_reply(usage: Usage) -> UsageReply:
    """``usage`` in OpenAI's form."""
    total = usage.prompt_tokens + usage.completion_tokens
    return UsageReply(usage.prompt_tokens, usage.completion_tokens, total, PromptDetails(usage.cached_tokens))


class Writer(Protocol):
    """Writes one request's answer, whole or as events."""

    def whole(self, answers: list[Answer], usage: Usage) -> bytes:
        """The body of an answer that is not streamed."""
        ...

    def open(self) -> bytes:
        """Events that come before the first piece."""
        ...

    def piece(self, index: int, delta: Delta) -> bytes:
        """Events for a piece of answer ``index``; nothing when it says nothing yet."""
        ...

    def close(self, usage: Usage) -> bytes:
        """Events that end the stream."""
        ...

    def broken(self, error: RequestError) -> bytes:
        """Events that end a stream which cannot go on."""
        ...


def event(value: Struct) -> bytes:
    """One server-sent event."""
    return b"data: " + encode(value) + b"\n\n"


class ErrorDetail(Struct):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Struct):
    """The error object every failed request gets."""

    error: ErrorDetail


def error_reply(error: RequestError) -> ErrorReply:
    """The error object; its ``type`` follows from the status."""
    if error.status == 429:
        kind = "rate_limit_error"
    elif error.status == 401:
        kind = "authentication_error"
    elif error.status == 403:
        kind = "permission_error"
    else:
        kind = "invalid_request_error" if error.status < 500 else "server_error"
    return ErrorReply(ErrorDetail(str(error), kind, error.param, error.code))


def token_text(content: bytes) -> str:
    """A token as text, broken characters replaced."""
    return content.decode("utf-8", "replace")
