"""POST /tokenize, /detokenize; GET or POST /tokenizer_info."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from danlu.serve.engine.request import Reply, ServedModel, TokenizerRequest
from danlu.serve.http.protocol.tokens import DetokenizeBody, TokenizeBody, TokenizerBody
from danlu.serve.http.replies.shared import encode
from danlu.serve.http.service import Service, json_response


class TokenizeReply(Struct):
    """The answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeReply(Struct):
    """The answer of /detokenize."""

    prompt: str


class TokenizerReply(Struct):
    """The answer of /tokenizer_info; it has whatever else is known of the tokenizer, too."""

    tokenizer_class: str | None
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None


async def tokenize(service: Service, request: Request) -> Response:
    """The ids of a text or conversation."""
    asked = await service.parse(request, TokenizeBody)
    model, caller = _find(service, asked.model), service.caller(request, asked)
    reply = await service.ask(request, asked.to_request(model), caller, model)
    assert isinstance(reply, Reply)
    ids = list(reply.value["ids"])
    most = int(reply.value.get("context_length", model.context_length))
    texts = list(reply.value["texts"]) if asked.return_token_strs else None
    return json_response(encode(TokenizeReply(len(ids), most, ids, texts)))


async def detokenize(service: Service, request: Request) -> Response:
    """The text of ids."""
    asked = await service.parse(request, DetokenizeBody)
    model, caller = _find(service, asked.model), service.caller(request, asked)
    return json_response(encode(DetokenizeReply(await service.detokenize(request, model, asked.tokens, caller))))


async def tokenizer_info(service: Service, request: Request) -> Response:
    """What the tokenizer is."""
    if request.method == "POST":
        name = (await service.parse(request, TokenizerBody)).model
    else:
        name = request.query_params.get("model")
    model, caller = _find(service, name), service.caller(request)
    reply = await service.ask(request, TokenizerRequest(model=model.name), caller, model)
    assert isinstance(reply, Reply)
    named = {f"{role}_token": None for role in ("bos", "eos", "pad")}
    value: dict[str, Any] = {"tokenizer_class": reply.value.get("kind"), **named, **reply.value}
    return json_response(encode(value))


def _find(service: Service, name: str | None) -> ServedModel:
    """Unnamed, it is the only model, or the only one that writes: clients that count tokens know no more than a URL."""
    is_alone = len([model for model in service.engine.models() if model.base is None]) == 1
    return service.find(name) if name is not None or is_alone else service.find(None, "write")
