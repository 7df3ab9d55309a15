"""What every request passes first: who may ask, from which page; and what every response carries: safety headers.

Knows nothing of routes beyond which are open to everybody, and nothing of models.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import Response

from danlu.core.errors import RequestError
from danlu.serve.http.config import LOOPBACK_HOSTS, HttpConfig
from danlu.serve.http.keys import NOBODY, Keys
from danlu.serve.http.metrics import Metrics
from danlu.serve.http.replies.shared import encode, error_reply

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
AsgiSend = Callable[[AsgiMessage], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, AsgiSend], Awaitable[None]]

OPEN_PATHS = frozenset({"/", "/page.css", "/page.js", "/icon.svg", "/health", "/ready", "/version"})
"""Paths that need no key: the page asks its user for it."""

_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]


def error_response(error: RequestError) -> Response:
    """The error object with its status and headers."""
    headers = {"cache-control": "no-store"}
    retry_after_s = getattr(error, "retry_after_s", 1 if error.status == 503 else None)
    if retry_after_s is not None:
        headers["retry-after"] = str(retry_after_s)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.status == 408:
        headers["connection"] = "close"
    return Response(encode(error_reply(error)), error.status, headers, "application/json")


class Guard:
    """Wraps the whole app."""

    def __init__(self, app: AsgiApp, config: HttpConfig, metrics: Metrics) -> None:
        self._app = app
        self._config = config
        self._metrics = metrics
        self._keys = Keys(config)

    async def __call__(self, scope: Scope, receive: Receive, send: AsgiSend) -> None:
        """Answer one request; an exception nobody foresaw is logged under the request's id and becomes a plain 500."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req-{secrets.token_hex(8)}"
        scope["danlu.request_id"] = request_id
        is_started = False

        async def send_guarded(message: AsgiMessage) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                self._metrics.responded(message["status"])
                headers = [*message.get("headers", ()), *_HEADERS, (b"x-request-id", request_id.encode())]
                message = {**message, "headers": headers}
            await send(message)

        headers: dict[bytes, bytes] = dict(scope["headers"])
        holder = self._keys.holder(headers.get(b"authorization", b""))
        scope["danlu.holder"] = holder or NOBODY
        refusal = self._foreign(headers)
        if refusal is None and holder is None and self._keys.is_asked and scope["path"] not in OPEN_PATHS:
            refusal = _UNAUTHORISED
        try:
            if refusal is not None:
                await error_response(refusal)(scope, receive, send_guarded)
            else:
                await self._app(scope, receive, send_guarded)
        except Exception:
            logger.exception(
                "%s: an unforeseen error while answering %s %r", request_id, scope["method"], scope["path"]
            )
            if not is_started:
                await error_response(internal_error(request_id))(scope, receive, send_guarded)

    def _foreign(self, headers: dict[bytes, bytes]) -> RequestError | None:
        """Refuse what another site's page sends through its reader's browser."""
        host = headers.get(b"host", b"").decode("latin-1")
        allowed = (*LOOPBACK_HOSTS, *self._config.allowed_hosts)
        if self._config.is_loopback and host and _host_name(host) not in allowed:
            return RequestError(
                f"Host {host[:100]!r} is not served.",
                "Ask for 127.0.0.1 or localhost, or add the name to allowed_hosts.",
                status=403,
                code="host_not_allowed",
            )
        origin = headers.get(b"origin")
        if origin is not None:
            source = origin.decode("latin-1").partition("://")[2]
            if source != host and _host_name(source) not in self._config.allowed_hosts:
                return RequestError(
                    "Pages of other sites may not ask.", "Use the page of this server.", status=403, code="cross_origin"
                )
        return None


_UNAUTHORISED = RequestError(
    "The API key is missing or wrong.",
    "Send the header Authorization: Bearer KEY.",
    status=401,
    code="invalid_api_key",
)


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def internal_error(request_id: str) -> RequestError:
    """What a client learns of a failure on our side."""
    return RequestError(
        "The server failed on this request.",
        f"Its log has the reason under {request_id}.",
        status=500,
        code="internal_error",
    )
