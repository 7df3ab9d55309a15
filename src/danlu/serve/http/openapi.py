"""The OpenAPI 3.1 document of all routes, made from the structs that read and write them.

Knows nothing of the routes' handlers but their first sentence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from danlu.serve.http.guard import OPEN_PATHS
from danlu.serve.http.replies.shared import ErrorReply, encode
from danlu.serve.http.version import VERSION

if TYPE_CHECKING:
    from danlu.serve.http.table import Endpoint

_ERRORS = {
    "400": "The request cannot be answered as it is.",
    "401": "The API key is missing or wrong.",
    "403": "This client may not do that.",
    "404": "There is no such thing.",
    "408": "The request did not arrive in time.",
    "409": "It is not in the state for that.",
    "413": "The body is too large.",
    "429": "The queue is full: try again after Retry-After.",
    "500": "The server failed.",
    "503": "The server is not ready, or stops.",
    "504": "The deadline passed.",
}


def openapi_document(endpoints: Sequence[Endpoint]) -> bytes:
    """The document as JSON."""
    types = [t for endpoint in endpoints for t in (endpoint.body, *_replies(endpoint)) if t is not None]
    types.append(ErrorReply)
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    by_type = dict(zip(map(repr, types), schemas, strict=True))
    errors: dict[str, Any] = {
        status: {"description": text, "content": {"application/json": {"schema": by_type[repr(ErrorReply)]}}}
        for status, text in _ERRORS.items()
    }
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        path = re.sub(r"\{(\w+)(?::\w+)?\}", r"{\1}", endpoint.path)
        operation: dict[str, Any] = {
            "operationId": re.sub(r"\W+", "_", f"{endpoint.method.lower()}{path}").strip("_"),
            "summary": (endpoint.handler.__doc__ or "").strip().splitlines()[0],
            "responses": {"200": {"description": "The answer.", "content": _content(endpoint, by_type)}, **errors},
        }
        if names := re.findall(r"\{(\w+)\}", path):
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
                for name in names
            ]
        if path in OPEN_PATHS:
            operation["security"] = []
        if path in ("/health", "/ready"):
            not_well = {"application/json": {"schema": by_type[repr(endpoint.reply)]}}
            operation["responses"]["503"] = {"description": "It is not.", "content": not_well}
        if endpoint.body is not None:
            schema = by_type[repr(endpoint.body)]
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths.setdefault(path, {})[endpoint.method.lower()] = operation
    return encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "danlu", "version": VERSION},
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
            "security": [{}, {"key": []}],
        }
    )


def _replies(endpoint: Endpoint) -> tuple[Any, ...]:
    return endpoint.reply if isinstance(endpoint.reply, tuple) else (endpoint.reply,)


def _content(endpoint: Endpoint, by_type: dict[str, Any]) -> dict[str, Any]:
    if endpoint.reply is None:
        return {"text/plain": {"schema": {"type": "string"}}}
    schemas = [by_type[repr(reply)] for reply in _replies(endpoint)]
    content: dict[str, Any] = {"application/json": {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}}
    if endpoint.streams:
        content["text/event-stream"] = {}
    return content
