"""POST /v1/responses; GET, DELETE and cancel of one that was kept."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from danlu.core.errors import RequestError
from danlu.core.records import GenerateOptions
from danlu.serve.engine.request import ServedModel
from danlu.serve.http.protocol.chat import ChatMessage, FunctionCall, ToolCall
from danlu.serve.http.protocol.responses import ResponsesRequest
from danlu.serve.http.replies.responses import (
    CallItem,
    Deleted,
    MessageItem,
    ResponseReply,
    ResponseWriter,
    new_id,
)
from danlu.serve.http.replies.shared import encode
from danlu.serve.http.routes.chat import prepare
from danlu.serve.http.service import EventStream, Service, holder, json_response


async def respond(service: Service, request: Request) -> Response | EventStream:
    """Answer items with items."""
    asked = await service.parse(request, ResponsesRequest)
    model = service.find(asked.model, "write")
    tenant = holder(request).tenant
    earlier: Sequence[ChatMessage] = ()
    if asked.previous_response_id is not None:
        earlier = service.stored.find(tenant, asked.previous_response_id, "previous_response_id").messages
    chat = asked.to_chat(earlier)
    write, new_parser = prepare(chat, model, service.caller(request, asked), service.config)
    reply = _reply(asked, model, write.options)
    before = [*earlier, *asked.messages()]

    def keep(finished: ResponseReply) -> None:
        if finished.store:
            service.stored.keep(tenant, finished, [*before, *_said(finished)])

    writer = ResponseWriter(reply, new_parser() if new_parser else None, keep)
    response = await service.write(request, [write], model, writer, is_stream=bool(asked.stream))
    if isinstance(response, EventStream) and reply.store:
        service.stored.keep(tenant, reply, before, response.cancel)
    return response


def _said(reply: ResponseReply) -> list[ChatMessage]:
    """What the model said and called, as one message."""
    texts = [item.content[0].text for item in reply.output if isinstance(item, MessageItem)]
    calls = [
        ToolCall(FunctionCall(it.name, it.arguments), it.call_id) for it in reply.output if isinstance(it, CallItem)
    ]
    return [ChatMessage("assistant", "".join(texts), calls or None)]


def _reply(asked: ResponsesRequest, model: ServedModel, options: GenerateOptions) -> ResponseReply:
    text = asked.text and asked.text.format
    shape = {"type": "text"} if text is None else {k: v for k, v in msgspec.to_builtins(text).items() if v is not None}
    reasoning = asked.reasoning
    return ResponseReply(
        id=new_id("resp"),
        created_at=int(time.time()),
        status="in_progress",
        instructions=asked.instructions,
        max_output_tokens=asked.max_output_tokens,
        model=model.name,
        output=[],
        parallel_tool_calls=True if asked.parallel_tool_calls is None else asked.parallel_tool_calls,
        previous_response_id=asked.previous_response_id,
        reasoning={"effort": reasoning and reasoning.effort, "summary": None},
        store=True if asked.store is None else asked.store,
        temperature=options.temperature,
        text={"format": shape},
        tool_choice="auto" if asked.tool_choice is None else msgspec.to_builtins(asked.tool_choice),
        tools=[msgspec.to_builtins(tool) for tool in asked.tools or ()],
        top_p=options.top_p,
        user=asked.user,
        metadata=asked.metadata or {},
    )


async def get(service: Service, request: Request) -> Response:
    """One response, as far as it came."""
    found = service.stored.find(holder(request).tenant, request.path_params["response_id"])
    return json_response(encode(found.reply))


async def delete(service: Service, request: Request) -> Response:
    """Forget one response."""
    found = service.stored.find(holder(request).tenant, request.path_params["response_id"])
    if found.cancel is not None:
        found.cancel()
    service.stored.drop(found.reply.id)
    return json_response(encode(Deleted(found.reply.id)))


async def cancel(service: Service, request: Request) -> Response:
    """End a response that is being written."""
    found = service.stored.find(holder(request).tenant, request.path_params["response_id"])
    if found.cancel is None:
        raise RequestError(
            f"The response is {found.reply.status}.", "Only one that is being written can be cancelled.", status=409,
            code="response_not_running",
        )  # fmt: skip
    found.cancel()
    found.reply.status = "cancelled"
    return json_response(encode(found.reply))
