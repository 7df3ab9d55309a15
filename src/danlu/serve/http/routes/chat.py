"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from danlu.core.errors import RequestError
from danlu.serve.engine.request import Caller, Grammar, ServedModel, WriteRequest
from danlu.serve.http.config import HttpConfig
from danlu.serve.http.protocol.chat import ChatRequest, NamedTool
from danlu.serve.http.replies.chat import ChatWriter
from danlu.serve.http.service import EventStream, Service
from danlu.text.answer import THOUGHT_CLOSE, AnswerParser, ReasoningSplitter
from danlu.text.tool_grammar import tool_grammar
from danlu.text.tool_parser import ToolParser
from danlu.text.tools import tool_schemas

NewParser = Callable[[], AnswerParser]


async def chat(service: Service, request: Request) -> Response | EventStream:
    """Answer a conversation."""
    asked = await service.parse(request, ChatRequest)
    model = service.find(asked.model, "write")
    write, new_parser = prepare(asked, model, service.caller(request, asked), service.config)
    writer = ChatWriter(
        model.name,
        write.options.n,
        includes_usage=asked.includes_usage,
        includes_ids=bool(asked.return_token_ids),
        new_parser=new_parser,
    )
    return await service.write(request, [write], model, writer, is_stream=asked.is_stream)


def prepare(
    asked: ChatRequest, model: ServedModel, caller: Caller, config: HttpConfig
) -> tuple[WriteRequest, NewParser | None]:
    """The request for the engine, and what takes an answer apart; None where it can only be text."""
    write = asked.to_write(model, caller, config)
    choice: Any = asked.tool_choice or ("auto" if write.tools else "none")
    if isinstance(choice, NamedTool):
        choice = msgspec.to_builtins(choice)
    parallel = True if asked.parallel_tool_calls is None else asked.parallel_tool_calls
    shape, is_either = write.grammar, write.grammar is not None and choice == "auto"
    found = tool_grammar(write.tools, choice, model.tool_format, is_parallel=parallel, is_whole=is_either)
    calls = bool(write.tools)
    if found is not None and shape is not None and is_either:  # a call, or text in its form
        if shape.kind == "lark":
            raise RequestError(
                "A grammar and tools are both given.", "Leave one out, or set tool_choice to none.", param="tools"
            )
        write = replace(write, grammar=replace(shape, calls=found.text))
    elif found is not None:  # where a call is a must, no text has a form
        write = replace(write, grammar=Grammar(kind="lark", text=found.text, after=found.after))
    if model.thinks == "at_once" and write.grammar is not None and not write.grammar.after:
        write = replace(write, grammar=replace(write.grammar, after=THOUGHT_CLOSE))  # thoughts have no form
    if not calls and model.thinks == "no":
        return write, None
    schemas = tool_schemas(write.tools)

    def new_parser() -> AnswerParser:
        reasoning = None if model.thinks == "no" else ReasoningSplitter(starts_inside=model.thinks == "at_once")
        return AnswerParser(reasoning, ToolParser(model.tool_format, schemas) if calls else None)

    return write, new_parser
