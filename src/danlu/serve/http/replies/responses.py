"""Answers of /v1/responses: items and their typed events.

Knows nothing of requests or the engine.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any, Literal

from msgspec import Struct

from danlu.core.errors import RequestError
from danlu.core.records import Delta, FinishReason, Usage
from danlu.serve.http.flight import Answer
from danlu.serve.http.replies.logprobs import ChatTokenLogprob, chat_logprobs
from danlu.serve.http.replies.shared import encode, error_reply
from danlu.text.answer import AnswerParser, AnswerPiece, ReasoningPiece
from danlu.text.tool_parser import ArgumentsPiece, CallStart, ContentPiece

Status = Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]


class OutputText(Struct, kw_only=True):
    """What is said."""

    type: Literal["output_text"] = "output_text"
    text: str = ""
    annotations: list[Any] = []
    logprobs: list[ChatTokenLogprob] = []


class MessageItem(Struct, kw_only=True, tag_field="type", tag="message"):
    """A message of the answer."""

    id: str
    status: Status = "in_progress"
    role: Literal["assistant"] = "assistant"
    content: list[OutputText] = []


class CallItem(Struct, kw_only=True, tag_field="type", tag="function_call"):
    """A call of a function."""

    id: str
    call_id: str
    name: str
    arguments: str = ""
    status: Status = "in_progress"


class ReasoningText(Struct, kw_only=True):
    """What is thought."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str = ""


class ReasoningItem(Struct, kw_only=True, tag_field="type", tag="reasoning"):
    """Thoughts before the answer."""

    id: str
    summary: list[Any] = []
    content: list[ReasoningText] = []
    status: Status = "in_progress"


Item = MessageItem | CallItem | ReasoningItem


class CachedDetails(Struct):
    """Of the tokens read."""

    cached_tokens: int
    cache_write_tokens: int = 0


class ReasoningDetails(Struct):
    """Of the tokens written; thoughts are not counted apart."""

    reasoning_tokens: int = 0


class ResponseUsage(Struct):
    """Tokens read and written."""

    input_tokens: int
    input_tokens_details: CachedDetails
    output_tokens: int
    output_tokens_details: ReasoningDetails
    total_tokens: int


class ResponseError(Struct):
    """Why a response failed."""

    code: str
    message: str


class Incomplete(Struct):
    """Why a response ends early."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseReply(Struct, kw_only=True):
    """The answer of /v1/responses."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    background: Literal[False] = False
    error: ResponseError | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[Item]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: Mapping[str, Any]
    store: bool
    temperature: float
    text: Mapping[str, Any]
    tool_choice: Any
    tools: list[Any]
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None
    metadata: dict[str, str]


class Deleted(Struct):
    """The answer to deleting a response."""

    id: str
    object: Literal["response.deleted"] = "response.deleted"
    deleted: Literal[True] = True


def new_id(prefix: str) -> str:
    """An id such as "resp_…"."""
    return f"{prefix}_{secrets.token_hex(16)}"


class ResponseWriter:
    """One response: items grow with the pieces of the answer, and each change is an event."""

    def __init__(
        self, reply: ResponseReply, parser: AnswerParser | None, on_finished: Callable[[ResponseReply], None]
    ) -> None:
        self._reply = reply
        self._parser = parser
        self._on_finished = on_finished
        self._sequence = 0
        self._item: Item | None = None

    def whole(self, answers: list[Answer], usage: Usage) -> bytes:
        """The body of an answer that is not streamed."""
        answer = answers[0]
        delta = Delta(
            text=answer.text,
            finish_reason=answer.finish_reason,
            logprobs=tuple(answer.logprobs),
            token_bytes=answer.token_bytes,
        )
        self.piece(0, delta)
        self._finish(usage)
        return encode(self._reply)

    def open(self) -> bytes:
        """That there is a response, and that it is being written."""
        return self._event("response.created", response=self._reply) + self._event(
            "response.in_progress", response=self._reply
        )

    def piece(self, index: int, delta: Delta) -> bytes:
        """The events of a piece of the answer."""
        logprobs = chat_logprobs(delta.logprobs, delta.token_bytes).content if delta.logprobs else []
        pieces: list[AnswerPiece] = []
        if self._parser is not None:
            pieces += self._parser.push(delta.text)
            if delta.finish_reason is not None:
                pieces += self._parser.finish()
        elif delta.text or logprobs:
            pieces = [ContentPiece(delta.text)]
        events = b""
        for piece in pieces:
            events += self._take(piece, logprobs)
            logprobs = []
        if delta.finish_reason is not None:
            events += self._end(delta.finish_reason)
        return events

    def _end(self, reason: FinishReason) -> bytes:
        is_cut = reason == "length"
        self._reply.status = "incomplete" if is_cut else "completed"
        self._reply.incomplete_details = Incomplete() if is_cut else None
        events = b"" if self._reply.output else self._open(MessageItem(id=new_id("msg"), content=[]))
        return events + self._close("incomplete" if is_cut else "completed")

    def _take(self, piece: AnswerPiece, logprobs: list[ChatTokenLogprob]) -> bytes:
        events = b""
        match piece:
            case ContentPiece():
                if not isinstance(self._item, MessageItem):
                    events = self._close() + self._open(MessageItem(id=new_id("msg"), content=[]))
                assert isinstance(self._item, MessageItem)
                part = self._item.content[0]
                part.text += piece.text
                part.logprobs = part.logprobs + logprobs
                return events + self._event(
                    "response.output_text.delta", **self._place, content_index=0, delta=piece.text, logprobs=logprobs
                )
            case ReasoningPiece():
                if not isinstance(self._item, ReasoningItem):
                    events = self._close() + self._open(ReasoningItem(id=new_id("rs"), content=[]))
                assert isinstance(self._item, ReasoningItem)
                self._item.content[0].text += piece.text
                return events + self._event(
                    "response.reasoning_text.delta", **self._place, content_index=0, delta=piece.text
                )
            case CallStart():
                call = CallItem(id=new_id("fc"), call_id=piece.id, name=piece.name)
                return self._close() + self._open(call)
            case ArgumentsPiece():
                assert isinstance(self._item, CallItem)
                self._item.arguments += piece.text
                return self._event("response.function_call_arguments.delta", **self._place, delta=piece.text)

    @property
    def _place(self) -> dict[str, Any]:
        assert self._item is not None
        return {"item_id": self._item.id, "output_index": len(self._reply.output) - 1}

    def _open(self, item: Item) -> bytes:
        self._item = item
        self._reply.output.append(item)
        events = self._event("response.output_item.added", output_index=len(self._reply.output) - 1, item=item)
        if isinstance(item, CallItem):
            return events
        part = OutputText() if isinstance(item, MessageItem) else ReasoningText()
        events += self._event("response.content_part.added", **self._place, content_index=0, part=part)
        item.content.append(part)  # pyright: ignore[reportArgumentType] - each kind has its own part
        return events

    def _close(self, status: Status = "completed") -> bytes:
        item = self._item
        if item is None:
            return b""
        item.status = status
        match item:
            case MessageItem():
                part = item.content[0]
                events = self._event(
                    "response.output_text.done", **self._place, content_index=0, text=part.text, logprobs=part.logprobs
                ) + self._event("response.content_part.done", **self._place, content_index=0, part=part)
            case ReasoningItem():
                part = item.content[0]
                events = self._event(
                    "response.reasoning_text.done", **self._place, content_index=0, text=part.text
                ) + self._event("response.content_part.done", **self._place, content_index=0, part=part)
            case CallItem():
                events = self._event(
                    "response.function_call_arguments.done", **self._place, name=item.name, arguments=item.arguments
                )
        events += self._event("response.output_item.done", output_index=len(self._reply.output) - 1, item=item)
        self._item = None
        return events

    def close(self, usage: Usage) -> bytes:
        """The whole response."""
        self._finish(usage)
        return self._event(f"response.{self._reply.status}", response=self._reply)

    def _finish(self, usage: Usage) -> None:
        read, written = usage.prompt_tokens, usage.completion_tokens
        cached = CachedDetails(usage.cached_tokens)
        self._reply.usage = ResponseUsage(read, cached, written, ReasoningDetails(), read + written)
        self._on_finished(self._reply)

    def broken(self, error: RequestError) -> bytes:
        """The error, and the response as far as it came."""
        detail = error_reply(error).error
        is_cancelled = error.code == "cancelled"
        self._reply.status = "cancelled" if is_cancelled else "failed"
        self._reply.error = None if is_cancelled else ResponseError(detail.code or "server_error", detail.message)
        self._on_finished(self._reply)
        told = self._event("error", code=detail.code, message=detail.message, param=detail.param)
        return told + self._event("response.failed", response=self._reply)

    def _event(self, kind: str, **fields: Any) -> bytes:
        body = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return b"event: " + kind.encode() + b"\ndata: " + encode(body) + b"\n\n"
