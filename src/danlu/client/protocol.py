"""The OpenAI protocol as a client meets it: what is sent, what comes back, and what a refusal means. Knows no
connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import msgspec
from msgspec import Struct

from danlu.core.errors import OverloadedError, RequestError
from danlu.core.records import FinishReason, GenerateOptions, Score, Usage


class TokenCounts(Struct):
    """Tokens read and written."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class ErrorDetail(Struct):
    """Why a request was refused."""

    message: str = ""
    code: str | int | None = None
    param: str | None = None


class _Text(Struct):
    content: str | None = None


class _Logprobs(Struct):
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(Struct):
    message: _Text | None = None
    delta: _Text | None = None
    text: str | None = None
    finish_reason: str | None = None


class Reply(Struct):
    """An answer, a chunk of one, or an error: the fields of all that we read."""

    choices: list[_Choice] = []
    usage: TokenCounts | None = None
    error: ErrorDetail | None = None


class _Tokens(Struct):
    tokens: list[int]


class _Scored(Struct):
    logprobs: _Logprobs


class _Scores(Struct):
    choices: list[_Scored]


class _Model(Struct):
    id: str


class _Models(Struct):
    data: list[_Model]


decode_reply = msgspec.json.Decoder(Reply).decode
decode_models = msgspec.json.Decoder(_Models).decode
decode_tokens = msgspec.json.Decoder(_Tokens).decode
_decode_scores = msgspec.json.Decoder(_Scores).decode

_SENT = {"max_tokens", "temperature", "top_p", "top_k", "stop", "seed"}
"""Options that requests carry."""


def encode_request(model: str, prompt: Mapping[str, Any], options: GenerateOptions, *, is_stream: bool) -> bytes:
    """The body of a request; ``prompt`` is ``{"prompt": …}`` or ``{"messages": …}``."""
    body: dict[str, Any] = {
        "model": model,
        **prompt,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
    }
    if options.top_k:
        body["top_k"] = options.top_k
    if options.stop:
        body["stop"] = options.stop
    if options.seed is not None:
        body["seed"] = options.seed
    if is_stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return msgspec.json.encode(body)


def encode_score(model: str, ids: Sequence[int]) -> bytes:
    """The body of a request that has a server tell how likely each of these tokens is, and write nothing."""
    return msgspec.json.encode({"model": model, "prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 1})


def decode_score(content: bytes, num_before: int, num_tokens: int) -> Score:
    """Of ``num_tokens`` tokens that come after ``num_before`` others. Raises msgspec.DecodeError when they are not
    there: servers may echo a prompt without its probabilities."""
    choices = _decode_scores(content).choices
    told = slice(num_before, num_before + num_tokens)
    found = choices[0].logprobs if choices else _Logprobs()
    values = [value for value in found.token_logprobs[told] if value is not None]
    tops = [max(top.values(), default=0.0) for top in (found.top_logprobs or [])[told] if top is not None]
    if len(values) != num_tokens or len(tops) != num_tokens:
        raise msgspec.DecodeError("the tokens of the prompt have no probabilities")
    is_greedy = all(value >= top for value, top in zip(values, tops, strict=True))
    return Score(logprob=sum(values), num_tokens=num_tokens, is_greedy=is_greedy, token_logprobs=tuple(values))


def check_sent(options: GenerateOptions) -> None:
    """Raises RequestError for an option that the request would leave out."""
    plain = GenerateOptions()
    for option in fields(options):
        value = getattr(options, option.name)
        if option.name not in _SENT and value != getattr(plain, option.name):
            raise RequestError(
                f"{option.name} is {value!r}, which is not sent to servers.",
                "Leave it out, or load the model here (danlu.load).",
                status=501,
                code="unsupported",
                param=option.name,
            )


def to_error(status: int, detail: ErrorDetail, retry_after: str | None) -> RequestError:
    """A refusal as an error; ``retry_after`` is the header of that name, in seconds."""
    message = detail.message or f"The server refused the request with status {status}."
    if status == 429:
        wait_s = int(retry_after) if retry_after is not None and retry_after.isdecimal() else 1
        return OverloadedError(message, retry_after_s=wait_s)
    code = str(detail.code) if detail.code is not None else None
    return RequestError(message, status=status, code=code, param=detail.param)


def to_finish_reason(reason: str | None) -> FinishReason | None:
    """In our words; None while the answer goes on."""
    if reason is None:
        return None
    if reason in ("length", "abort"):
        return "length" if reason == "length" else "abort"
    return "stop"


def to_usage(usage: TokenCounts | None) -> Usage:
    """Zeros where the server does not count."""
    usage = usage or TokenCounts()
    return Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)
