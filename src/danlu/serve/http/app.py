"""The API over one engine: ``create_app`` gives an ASGI app that any server can run.

Knows nothing of sockets, signals (see server.py) or torch. No request makes the server fetch a URL, render a
client's template or load anything but an adapter from the folder of adapters.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from danlu.core.errors import DanluError, RequestError, nearest
from danlu.serve.engine.request import ServingEngine
from danlu.serve.http.config import HttpConfig
from danlu.serve.http.flight import ClientGone
from danlu.serve.http.guard import AsgiApp, AsgiSend, Guard, Receive, Scope, error_response, internal_error
from danlu.serve.http.metrics import Metrics
from danlu.serve.http.openapi import openapi_document
from danlu.serve.http.routes.operations import PAGE_FILES, page_file
from danlu.serve.http.service import Service, json_response, public
from danlu.serve.http.table import ENDPOINTS, Handler


def create_app(engine: ServingEngine, config: HttpConfig | None = None) -> AsgiApp:
    """Every route of table.py, the page and the OpenAPI document, over ``engine``."""
    config = config or HttpConfig()
    metrics = Metrics()
    service = Service(engine, config, metrics)
    handlers: dict[str, dict[str, Handler]] = {}
    for endpoint in ENDPOINTS:
        handlers.setdefault(endpoint.path, {})[endpoint.method] = endpoint.handler
    document = openapi_document(ENDPOINTS)

    async def openapi(request: Request) -> Response:
        return json_response(document)

    routes = [
        *(Route(path, _Resource(service, by_method), methods=list(by_method)) for path, by_method in handlers.items()),
        Route("/openapi.json", openapi),
        *(Route(path, page_file(name, kind)) for path, (name, kind) in PAGE_FILES.items()),
    ]
    paths = [route.path for route in routes]

    async def no_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        asked = f"{request.method} {request.url.path[:100]}"
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            response = error_response(RequestError(f"{asked} is not served.", f"Use {allowed}.", status=405))
            response.headers["allow"] = allowed
            return response
        hint = nearest(request.url.path, paths)
        return error_response(
            RequestError(f"{asked} is not served.", hint, status=error.status_code, code="unknown_url")
        )

    app = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: no_route,
            DanluError: _explain,
            ClientGone: _to_nobody,
            ClientDisconnect: _to_nobody,
            Exception: _apologise,
        },
    )
    app.router.redirect_slashes = False
    return Guard(app, config, metrics)


class _Resource:
    """The handlers of one path, by method; an ASGI app of its own, so that an answer may be anything that sends."""

    def __init__(self, service: Service, by_method: dict[str, Handler]) -> None:
        self._service = service
        self._by_method = by_method

    async def __call__(self, scope: Scope, receive: Receive, send: AsgiSend) -> None:
        request = Request(scope, receive, send)
        method = "GET" if request.method == "HEAD" else request.method
        handler = self._by_method[method]
        response = await handler(self._service, request)
        await response(scope, receive, send)


async def _explain(request: Request, error: Exception) -> Response:
    assert isinstance(error, DanluError)
    return error_response(public(error, request.scope["danlu.request_id"]))


async def _to_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _apologise(request: Request, error: Exception) -> Response:
    return error_response(internal_error(request.scope["danlu.request_id"]))
