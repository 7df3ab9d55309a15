"""POST /v1/chat/completions: messages, tools and how to answer.

Knows nothing of templates: messages go on as data, and the engine's side renders them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta, Struct

from danlu.core.errors import RequestError
from danlu.core.records import Message
from danlu.serve.engine.request import IMAGE_MARK, Caller, ServedModel, WriteRequest
from danlu.serve.http.config import HttpConfig
from danlu.serve.http.protocol.images import decode_image
from danlu.serve.http.protocol.parse import Int64, shorten
from danlu.serve.http.protocol.sampling import MAX_GRAMMAR_BYTES, ResponseFormat, Sampling

_MAX_TOOLS_BYTES = MAX_GRAMMAR_BYTES
_TEMPLATE_OPTIONS = frozenset(
    {
        "add_generation_prompt",
        "continue_final_message",
        "date_string",
        "enable_thinking",
        "reasoning_effort",
        "thinking",
    }
)
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class ImageUrl(Struct):
    """Where an image is; only data: URIs are read."""

    url: str
    detail: str | None = None


class Part(Struct):
    """One part of a message's content: text or an image."""

    type: str
    text: str | None = None
    image_url: ImageUrl | str | None = None
    refusal: str | None = None

    def read(self, where: str, model: ServedModel, images: list[bytes]) -> str:
        """The part as text; an image is put on ``images`` and leaves a mark in the text."""
        if self.type in ("text", "input_text", "output_text", "refusal"):
            text = self.refusal if self.type == "refusal" else self.text
            if text is None:
                raise RequestError(f"{where} has no text.", 'Send {"type": "text", "text": "…"}.', param=where)
            return text.replace(IMAGE_MARK, "") if model.takes_images else text
        if self.type not in ("image_url", "input_image"):
            raise RequestError(
                f"{where} is of type {self.type[:40]!r}.", "Send text parts, or images as image_url.", param=where
            )
        if not model.takes_images:
            raise RequestError(
                f"{where} is an image, and '{model.name}' reads text alone.",
                "Send text parts, or choose another model.",
                param=where,
            )
        url = self.image_url.url if isinstance(self.image_url, ImageUrl) else self.image_url
        if url is None:
            raise RequestError(f"{where} has no image_url.", "Send an image as a data: URI.", param=where)
        images.append(decode_image(url, f"{where}.image_url"))
        return IMAGE_MARK


class FunctionCall(Struct):
    """What the model called."""

    name: str
    arguments: str


class ToolCall(Struct):
    """One call in an assistant's message."""

    function: FunctionCall
    id: str = ""
    type: Literal["function"] = "function"


class ChatMessage(Struct):
    """One message of a chat request."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None

    def to_message(self, where: str, model: ServedModel, images: list[bytes]) -> Message:
        """The message as plain data; ``where`` names it in errors."""
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role}
        if self.content is None:
            if not self.tool_calls:
                raise RequestError(f"{where} has no content.", "Give it text.", param=f"{where}.content")
            message["content"] = ""
        elif isinstance(self.content, str):
            message["content"] = self.content.replace(IMAGE_MARK, "") if model.takes_images else self.content
        else:
            parts = enumerate(self.content)
            texts = [part.read(f"{where}.content[{i}]", model, images) for i, part in parts]
            message["content"] = "\n".join(texts)
        if self.tool_calls:
            if self.role != "assistant":
                raise RequestError(
                    f"{where} has tool_calls, and its role is {self.role}.", "Only an assistant calls tools.",
                    param=f"{where}.tool_calls",
                )  # fmt: skip
            message["tool_calls"] = msgspec.to_builtins(self.tool_calls)
        for key in ("tool_call_id", "name", "reasoning_content"):
            value = getattr(self, key)
            if value is not None:
                message[key] = value
        return cast("Message", message)


class Function(Struct, omit_defaults=True):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct):
    """A tool that the model may use."""

    function: Function
    type: Literal["function"] = "function"


class NamedFunction(Struct):
    """The name of a function."""

    name: str


class NamedTool(Struct):
    """The one function that the model must call."""

    function: NamedFunction
    type: Literal["function"] = "function"


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class ChatRequest(Sampling, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Int64 | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    reasoning_effort: Annotated[str, Meta(max_length=32)] | None = None

    def to_write(self, model: ServedModel, caller: Caller, config: HttpConfig) -> WriteRequest:
        """The conversation for ``model``. Tools are not looked into; the grammar is the answer's, not that of calls."""
        images: list[bytes] = []
        messages = [m.to_message(f"messages[{i}]", model, images) for i, m in enumerate(self.messages)]
        most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return WriteRequest(
            model=model.name,
            prompt=messages,
            options=self.options(
                config.default_max_tokens if most is None else most,
                model.context_length,
                self._logprobs(),
                1 if self.n is None else self.n,
            ),
            caller=caller,
            grammar=self.grammar(self.response_format),
            tools=self._offered_tools(),
            template_options=self._template_options(),
            cache_salt=self.cache_salt or "",
            images=tuple(images),
        )

    def _logprobs(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise RequestError(
                f"top_logprobs is {self.top_logprobs} without logprobs.", "Set logprobs to true.", param="top_logprobs"
            )
        return (self.top_logprobs or 0) if self.logprobs else None

    def _offered_tools(self) -> tuple[Mapping[str, Any], ...]:
        tools = self.tools or []
        if tools and len(msgspec.json.encode(tools)) > _MAX_TOOLS_BYTES:
            raise RequestError(f"tools is larger than {_MAX_TOOLS_BYTES:,} bytes.", "Send fewer tools.", param="tools")
        return () if self.tool_choice == "none" else tuple(msgspec.to_builtins(tool) for tool in tools)

    def _template_options(self) -> dict[str, Any]:
        """Variables for the chat template: of the known names only, and plain values."""
        options: dict[str, Any] = dict(self.chat_template_kwargs or {})
        for name, value in options.items():
            param = "chat_template_kwargs"
            if name not in _TEMPLATE_OPTIONS:
                known = ", ".join(sorted(_TEMPLATE_OPTIONS))
                raise RequestError(f"{param} has {shorten(name)!r}.", f"Known: {known}.", param=param)
            if not isinstance(value, bool | int | float | str) or (isinstance(value, str) and len(value) > 64):
                raise RequestError(
                    f"{name} of {param} is {shorten(repr(value))}.", "Use true, false, a number or a short text.",
                    param=param,
                )  # fmt: skip
        for name in ("add_generation_prompt", "continue_final_message", "reasoning_effort"):
            value = getattr(self, name)
            if value is not None:
                options[name] = value
        if options.get("continue_final_message"):
            if self.messages[-1].role != "assistant":
                raise RequestError(
                    f"continue_final_message is true, and the last message is of the {self.messages[-1].role}.",
                    "End with the assistant's message that is to be continued.",
                    param="continue_final_message",
                )
            if options.get("add_generation_prompt"):
                raise RequestError(
                    "continue_final_message and add_generation_prompt are both true.", "Set one of them.",
                    param="continue_final_message",
                )  # fmt: skip
            options["add_generation_prompt"] = False
        return options
