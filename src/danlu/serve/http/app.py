"""The routes of the OpenAI API over one engine: ``create_app`` gives an ASGI app that any server can run.

Knows nothing of sockets, signals (see server.py) or torch. No request makes the server fetch a URL, render a
client's template or load anything.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import cached_property
from importlib import resources

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from danlu.core.errors import DanluError, RequestError, nearest
from danlu.core.records import Delta
from danlu.serve.engine.request import ServingEngine
from danlu.serve.http.config import HttpConfig
from danlu.serve.http.flight import Bridge, ClientGone, Flight
from danlu.serve.http.guard import AsgiApp, Guard, Receive, Scope, Send, error_response, internal_error
from danlu.serve.http.metrics import Metrics
from danlu.serve.http.protocol import ChatRequest, CompletionRequest, parse
from danlu.serve.http.replies import (
    PING,
    ChatWriter,
    CompletionWriter,
    Model,
    ModelList,
    Writer,
    encode,
    error_reply,
    event,
)

logger = logging.getLogger(__name__)

_PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def create_app(engine: ServingEngine, config: HttpConfig | None = None) -> AsgiApp:
    """Chat completions, completions, models, health, readiness, metrics and the page, over ``engine``."""
    config = config or HttpConfig()
    metrics = Metrics()
    service = Service(engine, config, metrics)
    routes = [
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
        Route("/v1/completions", service.complete, methods=["POST"]),
        Route("/v1/models", service.models),
        Route("/v1/models/{model:path}", service.model),
        Route("/health", service.health),
        Route("/ready", service.ready),
        Route("/metrics", service.metrics),
        *(Route(path, _page_file(name, kind)) for path, (name, kind) in _PAGE_FILES.items()),
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


def _public(error: DanluError, request_id: str) -> RequestError:
    """What the client may know of ``error``: a request's own faults; anything else stays in the log."""
    if isinstance(error, RequestError):
        return error
    logger.error("%s: the engine failed: %s", request_id, error, exc_info=error)
    return internal_error(request_id)


async def _explain(request: Request, error: Exception) -> Response:
    assert isinstance(error, DanluError)
    return error_response(_public(error, request.scope["danlu.request_id"]))


async def _to_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _apologise(request: Request, error: Exception) -> Response:
    return error_response(internal_error(request.scope["danlu.request_id"]))


def _page_file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = (resources.files("danlu.serve.http") / "page" / name).read_bytes()

    async def send_file(request: Request) -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return send_file


class Service:
    """The handlers of every route that is not a file."""

    def __init__(self, engine: ServingEngine, config: HttpConfig, metrics: Metrics) -> None:
        self._engine = engine
        self._config = config
        self._metrics = metrics
        self._started = int(time.time())

    @cached_property
    def _bridge(self) -> Bridge:
        return Bridge(asyncio.get_running_loop())

    async def chat(self, request: Request) -> Response | EventStream:
        """POST /v1/chat/completions."""
        asked = parse(ChatRequest, await self._read_body(request))
        return await self._answer(request, asked, ChatWriter(self._engine.name, includes_usage=asked.includes_usage))

    async def complete(self, request: Request) -> Response | EventStream:
        """POST /v1/completions."""
        asked = parse(CompletionRequest, await self._read_body(request))
        writer = CompletionWriter(self._engine.name, includes_usage=asked.includes_usage)
        return await self._answer(request, asked, writer)

    async def _answer(
        self, request: Request, asked: ChatRequest | CompletionRequest, writer: Writer
    ) -> Response | EventStream:
        """Generate; a stream begins only with the engine's first sign, so that an early error still has its status."""
        self._check_model(asked.model)
        options = asked.options(self._config.default_max_tokens, self._engine.context_length)
        prompts = asked.prompts(self._config.max_prompts)
        with ExitStack() as stack:
            flight = Flight(self._engine, self._bridge, self._metrics, self._config.request_timeout_s)
            stack.callback(flight.close)
            await flight.submit(prompts, options)
            flight.watch(request.receive)
            if not asked.is_stream:
                return _json(writer.whole(await flight.completions()))
            first = await flight.next_batch(self._config.ping_s)
            stack.pop_all()  # from here on the stream closes the flight
            return EventStream(flight, writer, first, len(prompts), self._config.ping_s)

    async def _read_body(self, request: Request) -> bytes:
        most = self._config.max_body_bytes
        too_large = RequestError(
            f"The body is larger than {most:,} bytes.", "Send a shorter prompt.", status=413, code="request_too_large"
        )
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._config.read_timeout_s):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise RequestError(
                f"The body had not arrived after {self._config.read_timeout_s:g} s.", "Send it faster.", status=408
            ) from None
        return bytes(body)

    def _check_model(self, model: str) -> None:
        if model != self._engine.name:
            raise RequestError(
                f"There is no model {model[:100]!r}.",
                f"This server has '{self._engine.name}'.",
                status=404,
                code="model_not_found",
                param="model",
            )

    def _model(self) -> Model:
        return Model(self._engine.name, self._started, self._engine.context_length)

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return _json(encode(ModelList([self._model()])))

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{model}."""
        self._check_model(request.path_params["model"])
        return _json(encode(self._model()))

    async def health(self, request: Request) -> Response:
        """GET /health: 503 when the scheduler has stood still for too long with work to do."""
        age_s = self._engine.status().last_step_age_s
        is_stalled = age_s > self._config.stall_s
        body = {"status": "stalled" if is_stalled else "ok", "last_step_age_s": round(min(age_s, 1e9), 3)}
        return _json(encode(body), 503 if is_stalled else 200)

    async def ready(self, request: Request) -> Response:
        """GET /ready: 503 before the model is loaded and while the server drains."""
        is_ready = self._engine.status().is_ready
        return _json(encode({"status": "ready" if is_ready else "not ready"}), 200 if is_ready else 503)

    async def metrics(self, request: Request) -> Response:
        """GET /metrics: Prometheus text."""
        text = self._metrics.render(self._engine.name, self._engine.status())
        return PlainTextResponse(text, headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"})


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, {"cache-control": "no-store"}, "application/json")


class EventStream:
    """A response of server-sent events. An answer that breaks ends with an error event and never says [DONE]."""

    def __init__(
        self, flight: Flight, writer: Writer, first: list[tuple[int, Delta]], num_prompts: int, ping_s: float
    ) -> None:
        self._flight = flight
        self._writer = writer
        self._first = first
        self._num_prompts = num_prompts
        self._ping_s = ping_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send pieces as they come, several in one write when several have come; comments while nothing does."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        headers.append((b"x-accel-buffering", b"no"))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            events = self._writer.open(self._num_prompts) + self._write(self._first)
            while not self._flight.is_finished:
                await send({"type": "http.response.body", "body": events or PING, "more_body": True})
                events = self._write(await self._flight.next_batch(self._ping_s))
            events += self._writer.close(self._flight.usage)
        except ClientGone:
            return
        except DanluError as error:
            events = event(error_reply(_public(error, scope["danlu.request_id"])))
        finally:
            self._flight.close()
        await send({"type": "http.response.body", "body": events, "more_body": False})

    def _write(self, batch: list[tuple[int, Delta]]) -> bytes:
        return b"".join([self._writer.piece(index, delta) for index, delta in batch])
