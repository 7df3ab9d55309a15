"""GET /health, /ready, /metrics, /version and the page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Literal

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from danlu.serve.http.replies.shared import encode
from danlu.serve.http.service import Service, json_response
from danlu.serve.http.version import VERSION

PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


class Health(Struct):
    """GET /health."""

    status: Literal["ok", "stalled"]
    last_step_age_s: float


class Readiness(Struct):
    """GET /ready."""

    status: Literal["ready", "not ready"]


class Version(Struct):
    """GET /version."""

    version: str
    name: Literal["danlu"] = "danlu"


async def health(service: Service, request: Request) -> Response:
    """503 when the scheduler has stood still for too long with work to do."""
    age_s = service.engine.status().last_step_age_s
    is_stalled = age_s > service.config.stall_s
    body = Health("stalled" if is_stalled else "ok", round(min(age_s, 1e9), 3))
    return json_response(encode(body), 503 if is_stalled else 200)


async def ready(service: Service, request: Request) -> Response:
    """503 before the model is loaded and while the server drains."""
    is_ready = service.engine.status().is_ready
    return json_response(encode(Readiness("ready" if is_ready else "not ready")), 200 if is_ready else 503)


async def metrics(service: Service, request: Request) -> Response:
    """Prometheus text."""
    text = service.metrics.render(service.engine.status())
    return PlainTextResponse(text, headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"})


async def version(service: Service, request: Request) -> Response:
    """Which danlu this is."""
    return json_response(encode(Version(VERSION)))


def page_file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    """A handler that sends one file of the page."""
    content = (resources.files("danlu.serve.http") / "page" / name).read_bytes()

    async def send_file(request: Request) -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return send_file
