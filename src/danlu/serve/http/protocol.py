"""Requests of the OpenAI API: JSON bytes in, a prompt and options out, or a RequestError naming the field.

Knows nothing of HTTP, the engine or how answers are written (see replies.py).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

import msgspec
from msgspec import Meta, Struct

from danlu.core.errors import RequestError
from danlu.core.records import GenerateOptions, Message, Prompt, Role

logger = logging.getLogger(__name__)

Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "frequency_penalty": (None, 0, 0.0),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "min_p": (None, 0, 0.0),
    "modalities": (None, ["text"]),
    "presence_penalty": (None, 0, 0.0),
    "repetition_penalty": (None, 1, 1.0),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
}
"""Fields of the API that would change the answer but are not served, with the values that ask for nothing."""

_MAX_REMEMBERED_FIELDS = 100
_fields_warned_of: set[str] = set()


class StreamOptions(Struct):
    """How to stream."""

    include_usage: bool | None = None


class Sampling(Struct, kw_only=True):
    """Fields that chats and completions share."""

    model: str
    max_tokens: Int64 | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int64 | None = None
    stop: str | list[str] | None = None
    seed: Int64 | None = None
    n: Int64 | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    @property
    def is_stream(self) -> bool:
        """Whether the answer is to come piece by piece."""
        return bool(self.stream)

    @property
    def includes_usage(self) -> bool:
        """Whether the stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def most_tokens(self) -> int | None:
        """The limit on the answer's length, where the request gives one."""
        return self.max_tokens

    def options(self, default_max_tokens: int, context_length: int) -> GenerateOptions:
        """The sampling options, with OpenAI's defaults where the request is silent."""
        most = default_max_tokens if self.most_tokens is None else self.most_tokens
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return GenerateOptions(
            max_tokens=min(most, context_length),
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            stop=tuple(stop),
            seed=self.seed,
        )


class Part(Struct):
    """One part of a message's content; only text is served."""

    type: str
    text: str | None = None


class ChatMessage(Struct):
    """One message of a chat request."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    tool_calls: list[Any] | None = None

    def to_message(self, where: str) -> Message:
        """The message as plain text; ``where`` names it in errors."""
        if self.tool_calls:
            raise RequestError(f"{where} has tool_calls.", "Tools are not served yet.", param=f"{where}.tool_calls")
        if self.content is None:
            raise RequestError(f"{where} has no content.", "Give it text.", param=f"{where}.content")
        role: Role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return {"role": role, "content": self.content}
        texts: list[str] = []
        for i, part in enumerate(self.content):
            param = f"{where}.content[{i}]"
            if part.type != "text":
                raise RequestError(
                    f"{param} is of type {part.type[:40]!r}.",
                    "Only text is read: send text parts.",
                    param=param,
                )
            if part.text is None:
                raise RequestError(f"{param} has no text.", 'Send {"type": "text", "text": "…"}.', param=param)
            texts.append(part.text)
        return {"role": role, "content": "\n".join(texts)}


class ChatRequest(Sampling, kw_only=True):
    """POST /v1/chat/completions."""

    known: ClassVar[frozenset[str]]
    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Int64 | None = None

    @property
    def most_tokens(self) -> int | None:
        """``max_completion_tokens``, or its older name ``max_tokens``."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def prompts(self, max_prompts: int) -> list[Prompt | Sequence[int]]:
        """The conversation, as the only prompt."""
        return [[message.to_message(f"messages[{i}]") for i, message in enumerate(self.messages)]]


class CompletionRequest(Sampling, kw_only=True):
    """POST /v1/completions."""

    known: ClassVar[frozenset[str]]
    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]

    def prompts(self, max_prompts: int) -> list[Prompt | Sequence[int]]:
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


ChatRequest.known = frozenset(ChatRequest.__struct_fields__)
CompletionRequest.known = frozenset(CompletionRequest.__struct_fields__)

R = TypeVar("R", ChatRequest, CompletionRequest)

_fields_of = msgspec.json.Decoder(dict[str, msgspec.Raw])
_decoders: dict[type, msgspec.json.Decoder[Any]] = {
    ChatRequest: msgspec.json.Decoder(ChatRequest),
    CompletionRequest: msgspec.json.Decoder(CompletionRequest),
}


def parse(kind: type[R], body: bytes) -> R:
    """The request in ``body``. Raises RequestError with the field at fault in ``param``."""
    _check_utf8(body)
    try:
        fields = _fields_of.decode(body)
        for name in fields.keys() - kind.known:
            _check_unserved(name, fields[name])
        request = cast("R", _decoders[kind].decode(body))
    except msgspec.ValidationError as error:
        raise _mismatch(str(error)) from error
    except msgspec.DecodeError as error:
        what = str(error).removeprefix("JSON is malformed: ")
        raise RequestError(f"The body is not JSON: {what}.", "Send one JSON object.") from error
    except RecursionError as error:
        raise RequestError("The body is nested too deeply.", "Send a flat JSON object.") from error
    if request.n is not None and request.n != 1:
        raise RequestError(f"n is {request.n}.", "Only 1 is served: send the request again for more.", param="n")
    return request


def _check_utf8(body: bytes) -> None:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"The body is not UTF-8 (byte {body[error.start]:#04x} at position {error.start}).", "Encode it as UTF-8."
        ) from error


def _check_unserved(name: str, raw: msgspec.Raw) -> None:
    """Refuse a field that asks for what is not served; warn once of one that nobody knows."""
    if name in _NEUTRAL:
        value = msgspec.json.decode(raw)
        if not any(type(value) is type(neutral) and value == neutral for neutral in _NEUTRAL[name]):
            raise RequestError(
                f"{name} is not served yet, and {_shorten(raw)} would change the answer.",
                "Leave it out.",
                code="unsupported_parameter",
                param=name,
            )
    elif name not in _fields_warned_of and len(_fields_warned_of) < _MAX_REMEMBERED_FIELDS:
        _fields_warned_of.add(name[:64])
        logger.warning("A request has the unknown field %r; it is ignored.", name[:64])


def _shorten(raw: msgspec.Raw) -> str:
    text = bytes(raw).decode("utf-8", "replace")
    return text if len(text) <= 60 else text[:60] + "…"


_PATH = re.compile(r"^(?P<what>.*) - at `(?P<key>key in )?\$?\.?(?P<path>.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>\w+)`")


def _mismatch(text: str) -> RequestError:
    """msgspec's complaint as a RequestError whose ``param`` is the path of the field."""
    found = _PATH.match(text)
    what, path = (found["what"], found["path"]) if found else (text, "")
    missing = _MISSING.match(what)
    if missing:
        param = f"{path}.{missing['name']}" if path else missing["name"]
        return RequestError(f"{param} is missing.", "Every request of this kind needs it.", param=param)
    what = what[:1].lower() + what[1:]
    is_role = what.startswith("invalid enum value")
    hint = "Use system, developer, user, assistant or tool." if is_role else "Mend this field."
    return RequestError(f"{path or 'The body'}: {what}.", hint, param=path or None)
