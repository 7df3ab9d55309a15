"""POST /v1/responses: items in, the same conversation as a chat request out.

Knows nothing of stored responses: the messages of an earlier one are handed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from danlu.core.errors import RequestError
from danlu.serve.http.protocol.chat import (
    ChatMessage,
    ChatRequest,
    Function,
    FunctionCall,
    Name,
    NamedFunction,
    NamedTool,
    Part,
    Tool,
    ToolCall,
)
from danlu.serve.http.protocol.parse import Int64
from danlu.serve.http.protocol.sampling import Asked, JsonSchema, ResponseFormat, Schema


class InputItem(Struct, kw_only=True):
    """A message, a call that the model made, or what came of it."""

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None


class TextFormat(Struct):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema: Schema | None = None
    description: str | None = None
    strict: bool | None = None


class TextConfig(Struct):
    """How the text is to be written."""

    format: TextFormat | None = None
    verbosity: str | None = None


class FlatTool(Struct):
    """A function that the model may call."""

    type: str
    name: Name | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FlatChoice(Struct):
    """The one function that the model must call."""

    name: str
    type: Literal["function"] = "function"


class Reasoning(Struct):
    """How much to think."""

    effort: Annotated[str, Meta(max_length=32)] | None = None
    summary: str | None = None


class ResponsesRequest(Asked, kw_only=True):
    """POST /v1/responses."""

    input: str | Annotated[list[InputItem], Meta(min_length=1)]
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Int64 | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    text: TextConfig | None = None
    tools: Annotated[list[FlatTool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    store: bool | None = None
    stream: bool | None = None
    background: bool | None = None
    conversation: Any = None
    top_k: Int64 | None = None
    min_p: float | None = None
    seed: Int64 | None = None
    stop: str | list[str] | None = None
    repetition_penalty: float | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    cache_salt: Annotated[str, Meta(max_length=256)] | None = None

    def messages(self) -> list[ChatMessage]:
        """The input as messages, without the instructions."""
        if isinstance(self.input, str):
            return [ChatMessage("user", self.input)]
        messages: list[ChatMessage] = []
        for i, item in enumerate(self.input):
            _append(messages, item, f"input[{i}]")
        return messages

    def to_chat(self, earlier: Sequence[ChatMessage]) -> ChatRequest:
        """The same as a chat, after ``earlier`` messages."""
        for name in ("background", "conversation"):
            if getattr(self, name):
                raise RequestError(
                    f"{name} is not served.", "Leave it out.", code="unsupported_parameter", param=name
                )  # fmt: skip
        head = [] if self.instructions is None else [ChatMessage("system", self.instructions)]
        return ChatRequest(
            model=self.model,
            messages=[*head, *earlier, *self.messages()],
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            stop=self.stop,
            repetition_penalty=self.repetition_penalty,
            logprobs=True if self.top_logprobs else None,
            top_logprobs=self.top_logprobs,
            response_format=self._format(),
            tools=[_tool(tool, f"tools[{i}]") for i, tool in enumerate(self.tools or ())] or None,
            tool_choice=_choice(self.tool_choice),
            parallel_tool_calls=self.parallel_tool_calls,
            reasoning_effort=None if self.reasoning is None else self.reasoning.effort,
            chat_template_kwargs=self.chat_template_kwargs,
            cache_salt=self.cache_salt,
        )

    def _format(self) -> ResponseFormat | None:
        shape = None if self.text is None else self.text.format
        if shape is None or shape.type == "text":
            return None
        return ResponseFormat(shape.type, JsonSchema(shape.schema, shape.name))


def _choice(choice: Literal["none", "auto", "required"] | FlatChoice | None) -> Any:
    return NamedTool(NamedFunction(choice.name)) if isinstance(choice, FlatChoice) else choice


def _tool(tool: FlatTool, where: str) -> Tool:
    if tool.type != "function":
        raise RequestError(
            f"{where} is of type {tool.type[:40]!r}.", "Only functions are served.", code="unsupported_parameter",
            param=where,
        )  # fmt: skip
    if tool.name is None:
        raise RequestError(f"{where}.name is missing.", "Name the function.", param=f"{where}.name")
    return Tool(Function(tool.name, tool.description, tool.parameters, tool.strict))


def _append(messages: list[ChatMessage], item: InputItem, where: str) -> None:
    """Add what one item says; calls join the assistant's message before them."""
    if item.type == "message":
        if item.role is None:
            raise RequestError(f"{where}.role is missing.", "Every message needs it.", param=f"{where}.role")
        messages.append(ChatMessage(item.role, item.content))
    elif item.type == "function_call":
        if item.name is None or item.call_id is None:
            missing = "name" if item.name is None else "call_id"
            raise RequestError(f"{where}.{missing} is missing.", "Every call needs it.", param=f"{where}.{missing}")
        call = ToolCall(FunctionCall(item.name, item.arguments or "{}"), item.call_id)
        last = messages[-1] if messages else None
        if last is not None and last.role == "assistant":
            messages[-1] = msgspec.structs.replace(last, tool_calls=[*(last.tool_calls or ()), call])
        else:
            messages.append(ChatMessage("assistant", None, [call]))
    elif item.type == "function_call_output":
        if item.call_id is None or item.output is None:
            missing = "call_id" if item.call_id is None else "output"
            raise RequestError(f"{where}.{missing} is missing.", "Every result needs it.", param=f"{where}.{missing}")
        messages.append(ChatMessage("tool", item.output, None, item.call_id))
    elif item.type != "reasoning":  # thoughts of earlier turns are not told again
        raise RequestError(
            f"{where} is of type {item.type[:40]!r}.",
            "Send messages, function_call and function_call_output items.",
            param=f"{where}.type",
        )
