"""Answers of /v1/chat/completions: messages with tool calls, thoughts and log-probabilities, whole or in pieces.

Knows nothing of requests or the engine. What in a text is a call or a thought, the parser tells.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from danlu.core.errors import RequestError
from danlu.core.records import Delta, FinishReason, Usage
from danlu.serve.http.flight import Answer
from danlu.serve.http.replies.logprobs import ChatLogprobs, chat_logprobs
from danlu.serve.http.replies.shared import DONE, UsageReply, encode, error_reply, event, usage_reply
from danlu.serve.http.version import FINGERPRINT
from danlu.text.answer import AnswerParser, AnswerPiece, ReasoningPiece
from danlu.text.tool_parser import ArgumentsPiece, CallStart, ContentPiece

ChatFinishReason = FinishReason | Literal["tool_calls"]


class CalledFunction(Struct):
    """What the model calls."""

    name: str
    arguments: str


class CallReply(Struct):
    """One call of a function."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class ChatText(Struct, kw_only=True):
    """The message of a chat answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CallReply] | UnsetType = UNSET


class ChatChoice(Struct):
    """One answer to a chat."""

    index: int
    message: ChatText
    finish_reason: ChatFinishReason
    logprobs: ChatLogprobs | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct, kw_only=True):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str = FINGERPRINT
    choices: list[ChatChoice]
    usage: UsageReply


class _CallHead(Struct):
    name: str
    arguments: str = ""


class _CallBegin(Struct):
    index: int
    id: str
    function: _CallHead
    type: Literal["function"] = "function"


class _ArgumentsPart(Struct):
    arguments: str


class _CallPart(Struct):
    index: int
    function: _ArgumentsPart


class ChatDelta(Struct, omit_defaults=True):
    """A piece of a chat answer."""

    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_CallBegin | _CallPart] | None = None


class _Ending(Struct):
    """The usage chunk."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: tuple[()]
    usage: UsageReply


def read_answer(text: str, parser: AnswerParser | None) -> tuple[str, str, list[CallReply]]:
    """A whole answer's content, thoughts and calls."""
    if parser is None:
        return text, "", []
    content: list[str] = []
    thoughts: list[str] = []
    calls: list[CallReply] = []
    for piece in [*parser.push(text), *parser.finish()]:
        match piece:
            case ContentPiece():
                content.append(piece.text)
            case ReasoningPiece():
                thoughts.append(piece.text)
            case CallStart():
                calls.append(CallReply(piece.id, CalledFunction(piece.name, "")))
            case ArgumentsPiece():
                calls[piece.index].function.arguments += piece.text
    return "".join(content), "".join(thoughts), calls


class ChatWriter:
    """Answers of /v1/chat/completions."""

    def __init__(
        self,
        model: str,
        num_answers: int,
        *,
        includes_usage: bool,
        includes_ids: bool = False,
        new_parser: Callable[[], AnswerParser] | None = None,
    ) -> None:
        """``includes_ids``: the tokens' ids go back beside their text. ``new_parser`` makes what finds calls and
        thoughts in one answer; None where there can be none.
        """
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = model
        self._num_answers = num_answers
        self._includes_usage = includes_usage
        self._includes_ids = includes_ids
        self._new_parser = new_parser
        self._parsers: dict[int, AnswerParser] = {}
        self._calling: set[int] = set()
        head = encode(
            {
                "id": self._id,
                "object": "chat.completion.chunk",
                "created": self._created,
                "model": model,
                "system_fingerprint": FINGERPRINT,
            }
        )
        self._head = b"data: " + head[:-1] + b',"choices":[{"index":'
        self._tail = b'}],"usage":null}\n\n' if includes_usage else b"}]}\n\n"

    def whole(self, answers: list[Answer], usage: Usage) -> bytes:
        """The body of an answer that is not streamed."""
        choices = [self._choice(i, answer) for i, answer in enumerate(answers)]
        return encode(
            ChatCompletion(
                id=self._id, created=self._created, model=self._model, choices=choices, usage=usage_reply(usage)
            )
        )

    def _choice(self, index: int, answer: Answer) -> ChatChoice:
        content, thoughts, calls = read_answer(answer.text, self._new_parser and self._new_parser())
        message = ChatText(content=content if content or not calls else None)
        if thoughts:
            message.reasoning_content = thoughts
        if calls:
            message.tool_calls = calls
        reason: ChatFinishReason = "tool_calls" if calls and answer.finish_reason == "stop" else answer.finish_reason
        logprobs = chat_logprobs(answer.logprobs, answer.token_bytes) if answer.logprobs else None
        ids = answer.token_ids if self._includes_ids else UNSET
        return ChatChoice(index, message, reason, logprobs, ids)

    def open(self) -> bytes:
        """The role of each answer."""
        role = b'{"role":"assistant","content":""}'
        return b"".join([self._chunk(i, role) for i in range(self._num_answers)])

    def piece(self, index: int, delta: Delta) -> bytes:
        """The text, thought or call, then the finish reason in a chunk of its own."""
        logprobs = b"null"
        if delta.logprobs:
            logprobs = encode(chat_logprobs(delta.logprobs, delta.token_bytes))
        if self._includes_ids and delta.token_ids:  # a chunk of their own, for a piece may be no text, or several parts
            return self._chunk(index, b"{}", ids=encode(delta.token_ids)) + self._said(index, delta, logprobs)
        return self._said(index, delta, logprobs)

    def _said(self, index: int, delta: Delta, logprobs: bytes) -> bytes:
        reason: ChatFinishReason | None = delta.finish_reason
        if self._new_parser is None:
            has_text = delta.text or delta.logprobs
            events = self._chunk(index, b'{"content":' + encode(delta.text) + b"}", logprobs) if has_text else b""
        else:
            events = self._split(index, delta, logprobs)
            if reason == "stop" and index in self._calling:
                reason = "tool_calls"
        if reason is not None:
            events += self._chunk(index, b"{}", finish_reason=b'"' + reason.encode() + b'"')
        return events

    def _split(self, index: int, delta: Delta, logprobs: bytes) -> bytes:
        """The piece taken apart; the log-probabilities go with the first part, or with an empty one."""
        assert self._new_parser is not None
        parser = self._parsers.get(index)
        if parser is None:
            parser = self._parsers[index] = self._new_parser()
        pieces = list(parser.push(delta.text)) if delta.text else []
        if delta.finish_reason is not None:
            pieces += parser.finish()
        bodies = [encode(self._delta(index, piece)) for piece in pieces]
        if not bodies and delta.logprobs:
            bodies = [b'{"content":""}']
        return b"".join([self._chunk(index, body, b"null" if i else logprobs) for i, body in enumerate(bodies)])

    def _delta(self, index: int, piece: AnswerPiece) -> ChatDelta:
        match piece:
            case ContentPiece():
                return ChatDelta(content=piece.text)
            case ReasoningPiece():
                return ChatDelta(reasoning_content=piece.text)
            case CallStart():
                self._calling.add(index)
                return ChatDelta(tool_calls=[_CallBegin(piece.index, piece.id, _CallHead(piece.name))])
            case ArgumentsPiece():
                return ChatDelta(tool_calls=[_CallPart(piece.index, _ArgumentsPart(piece.text))])

    def _chunk(
        self, index: int, delta: bytes, logprobs: bytes = b"null", finish_reason: bytes = b"null", ids: bytes = b""
    ) -> bytes:
        tail = b',"token_ids":' + ids + self._tail if ids else self._tail
        return b"%b%d,\"delta\":%b,\"logprobs\":%b,\"finish_reason\":%b%b" % (
            self._head, index, delta, logprobs, finish_reason, tail,
        )  # fmt: skip

    def close(self, usage: Usage) -> bytes:
        """The usage chunk where it was asked for, then the end mark."""
        if not self._includes_usage:
            return DONE
        kind = "chat.completion.chunk"
        ending = _Ending(self._id, kind, self._created, self._model, FINGERPRINT, (), usage_reply(usage))
        return event(ending) + DONE

    def broken(self, error: RequestError) -> bytes:
        """The error; no end mark follows it."""
        return event(error_reply(error))
