"""GET /v1/models and /v1/models/{model}; POST /v1/load_lora_adapter and /v1/unload_lora_adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from danlu.core.errors import RequestError
from danlu.serve.engine.request import AdapterRequest, Reply, ServedModel
from danlu.serve.http.protocol.adapters import LoadBody, UnloadBody
from danlu.serve.http.replies.shared import encode
from danlu.serve.http.service import Service, holder, json_response


class Model(Struct, kw_only=True):
    """One served model; what follows ``owned_by`` is not OpenAI's."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["danlu"] = "danlu"
    root: str
    parent: str | None
    context_length: int
    max_model_len: int
    abilities: list[str]
    labels: list[str]
    dimensions: int
    takes_images: bool
    is_loaded: bool


class ModelList(Struct):
    """GET /v1/models."""

    data: list[Model]
    object: Literal["list"] = "list"


class AdapterReply(Struct):
    """The answer of the adapter routes."""

    status: str
    model: str
    version: int | None = None


def _model(it: ServedModel) -> Model:
    return Model(
        id=it.name,
        created=it.created,
        root=it.base or it.name,
        parent=it.base,
        context_length=it.context_length,
        max_model_len=it.context_length,
        abilities=sorted(it.abilities),
        labels=list(it.labels),
        dimensions=it.width,
        takes_images=it.takes_images,
        is_loaded=it.is_loaded,
    )


async def models(service: Service, request: Request) -> Response:
    """All that clients may name."""
    return json_response(encode(ModelList([_model(it) for it in service.engine.models()])))


async def model(service: Service, request: Request) -> Response:
    """One of them."""
    return json_response(encode(_model(service.find(request.path_params["model"]))))


async def load_adapter(service: Service, request: Request) -> Response:
    """Load an adapter from the folder of adapters, or replace it by what lies there now."""
    root = _check_allowed(service, request)
    asked = await service.parse(request, LoadBody)
    if any(it.name == asked.lora_name and it.base is None for it in service.engine.models()):
        raise RequestError(
            f"{asked.lora_name!r} is the name of a model.", "Give the adapter another name.", param="lora_name"
        )
    return await _change(service, request, asked.to_request(root), "loaded")


async def unload_adapter(service: Service, request: Request) -> Response:
    """Forget an adapter; requests that use it finish."""
    _check_allowed(service, request)
    asked = await service.parse(request, UnloadBody)
    if all(it.name != asked.lora_name or it.base is None for it in service.engine.models()):
        raise RequestError(
            f"There is no adapter {asked.lora_name!r}.", "GET /v1/models lists them.", status=404,
            code="model_not_found", param="lora_name",
        )  # fmt: skip
    return await _change(service, request, asked.to_request(), "unloaded")


async def _change(service: Service, request: Request, asked: AdapterRequest, status: str) -> Response:
    base = service.find(asked.model or None, "write", "embed", "classify", "tag", "score") if asked.folder else None
    if base is None:
        base = service.find(asked.name)
    caller = service.caller(request)
    reply = await service.ask(request, asked, caller, base)
    assert isinstance(reply, Reply)
    return json_response(encode(AdapterReply(status, asked.name, reply.value.get("version"))))


def _check_allowed(service: Service, request: Request) -> Path:
    """The folder of adapters; RequestError 403 unless this client may change what is served."""
    config = service.config
    is_open = config.admin_key is None and config.is_loopback and config.allow_adapter_loading
    if config.adapter_root is None or not (holder(request).is_admin or is_open):
        if config.adapter_root is None:
            hint = "Start the server with adapter_root, and with admin_key or (on loopback) allow_adapter_loading."
        else:
            hint = "Send the server's admin_key as the bearer token."
        raise RequestError(
            "Adapters may not be loaded or unloaded by this client.", hint, status=403, code="adapters_not_allowed"
        )
    return config.adapter_root
