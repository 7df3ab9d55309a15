"""The async client of any OpenAI-compatible server.

A request that was not answered (429, 503, no connection) is sent again, later each time; one that has begun to be
answered never is. Knows nothing of how the server works.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
import msgspec

from danlu.client.protocol import (
    ErrorDetail,
    Reply,
    TokenCounts,
    check_sent,
    decode_models,
    decode_reply,
    decode_score,
    decode_tokens,
    encode_request,
    encode_score,
    to_error,
    to_finish_reason,
    to_usage,
)
from danlu.core.errors import RequestError
from danlu.core.records import Completion, Delta, FinishReason, GenerateOptions, Message, Prompt, Score

_Route = Literal["chat/completions", "completions"]


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for a server, and how often to ask again."""

    timeout_s: float = 600.0
    """Longest silence of the server within a request."""
    connect_timeout_s: float = 10.0
    """Longest time to reach the server."""
    max_retries: int = 4
    """How often a request that was not answered is sent again."""
    first_delay_s: float = 0.25
    """Delay before the second try; it doubles with each further one, and up to half of it is added at random."""
    most_delay_s: float = 20.0
    """Longest delay, whatever the server's Retry-After says."""


class Client:
    """Use as ``async with Client("http://127.0.0.1:8000") as client: await client.chat([...])``."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        model: str | None = None,
        patience: Patience | None = None,
    ) -> None:
        """``base_url`` with or without /v1; without ``model`` the first one that the server lists is asked."""
        self._base_url = base_url
        self._root = base_url.rstrip("/").removesuffix("/v1") + "/v1"
        self._api_key = api_key
        self._model = model
        self._patience = patience or Patience()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def models(self) -> list[str]:
        """Names of the models the server has."""
        async with self._send("GET", "models", None) as response:
            content = await self._read(response)
        try:
            return [model.id for model in decode_models(content).data]
        except msgspec.DecodeError as error:
            raise self._nonsense(content) from error

    async def chat(self, messages: Sequence[Message], options: GenerateOptions | None = None) -> Completion:
        """The answer to a conversation."""
        return await self._whole("chat/completions", {"messages": list(messages)}, options)

    async def complete(self, prompt: str, options: GenerateOptions | None = None) -> Completion:
        """The continuation of a raw text."""
        return await self._whole("completions", {"prompt": prompt}, options)

    async def answer(self, prompt: Prompt, options: GenerateOptions | None = None) -> Completion:
        """``complete`` for a text, ``chat`` for messages."""
        return await (self.complete(prompt, options) if isinstance(prompt, str) else self.chat(prompt, options))

    async def score(self, prompt: Prompt, continuation: str) -> Score:
        """How likely the model finds ``continuation`` after ``prompt``.

        Needs a server that has /tokenize and echoes prompts with their log-probabilities, as danlu and vLLM do: prompt
        and continuation are cut into tokens apart from each other. Raises RequestError 501 for others.
        """
        before = await self._ids({"prompt": prompt} if isinstance(prompt, str) else {"messages": list(prompt)})
        answer = await self._ids({"prompt": continuation, "add_special_tokens": False})
        if not before or not answer:
            raise RequestError("Prompt and continuation must both have at least one token.", "Send some text.")
        body = encode_score(await self._name(), [*before, *answer])
        async with self._send("POST", "completions", body) as response:
            content = await self._read(response)
        try:
            return decode_score(content, len(before), len(answer))
        except msgspec.DecodeError as error:
            raise self._cannot_score("does not tell how likely a prompt is") from error

    async def _ids(self, text: Mapping[str, Any]) -> list[int]:
        body = msgspec.json.encode({"model": await self._name(), **text})
        try:
            async with self._send("POST", "../tokenize", body) as response:
                content = await self._read(response)
        except RequestError as error:
            if error.status not in (404, 405) or error.code == "model_not_found":
                raise
            raise self._cannot_score("has no /tokenize") from error
        try:
            return decode_tokens(content).tokens
        except msgspec.DecodeError as error:
            raise self._nonsense(content) from error

    def _cannot_score(self, why: str) -> RequestError:
        return RequestError(
            f"{self._root} {why}, so nothing can be scored there.", "Load the model here (danlu.load), or ask another "
            "server.", status=501, code="unsupported",
        )  # fmt: skip

    def stream_chat(self, messages: Sequence[Message], options: GenerateOptions | None = None) -> AsyncIterator[Delta]:
        """The answer to a conversation, piece by piece. Leaving the loop early (``aclose``) stops the server too."""
        return self._stream("chat/completions", {"messages": list(messages)}, options)

    def stream_complete(self, prompt: str, options: GenerateOptions | None = None) -> AsyncIterator[Delta]:
        """The continuation of a raw text, piece by piece."""
        return self._stream("completions", {"prompt": prompt}, options)

    async def _body(self, prompt: Mapping[str, Any], options: GenerateOptions | None, *, is_stream: bool) -> bytes:
        options = options or GenerateOptions()
        check_sent(options)
        return encode_request(await self._name(), prompt, options, is_stream=is_stream)

    async def _name(self) -> str:
        """The model that is asked."""
        if self._model is None:
            names = await self.models()
            if not names:
                raise RequestError(f"{self._root} has no model.", "Load one there.", status=404, code="model_not_found")
            self._model = names[0]
        return self._model

    async def _whole(self, route: _Route, prompt: Mapping[str, Any], options: GenerateOptions | None) -> Completion:
        async with self._send("POST", route, await self._body(prompt, options, is_stream=False)) as response:
            content = await self._read(response)
        reply = self._decode(content)
        if not reply.choices:
            raise self._nonsense(content)
        choice = reply.choices[0]
        text = choice.text if choice.message is None else choice.message.content
        finish_reason = to_finish_reason(choice.finish_reason) or "stop"
        return Completion(text=text or "", finish_reason=finish_reason, usage=to_usage(reply.usage))

    async def _stream(
        self, route: _Route, prompt: Mapping[str, Any], options: GenerateOptions | None
    ) -> AsyncIterator[Delta]:
        finish_reason: FinishReason | None = None
        usage: TokenCounts | None = None
        body = await self._body(prompt, options, is_stream=True)
        async with self._send("POST", route, body) as response:
            async for data in self._events(response):
                reply = self._decode(data)
                if reply.error is not None:
                    raise to_error(500, reply.error, None)
                usage = reply.usage or usage
                for choice in reply.choices:
                    text = choice.text if choice.delta is None else choice.delta.content
                    if text:
                        yield Delta(text=text)
                    finish_reason = to_finish_reason(choice.finish_reason) or finish_reason
        if finish_reason is None:
            raise self._broken()
        yield Delta(text="", finish_reason=finish_reason, usage=to_usage(usage))

    async def _events(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """Data lines of the stream up to [DONE]; lines may be of any length and cut anywhere."""
        rest = b""
        try:
            async for block in response.content.iter_any():
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    if line.startswith(b"data:"):
                        data = line[5:].strip()
                        if data == b"[DONE]":
                            return
                        yield data
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._broken() from error

    @asynccontextmanager
    async def _send(self, method: str, route: str, body: bytes | None) -> AsyncGenerator[aiohttp.ClientResponse]:
        """The response of an answered request; sends it again while the server is away or full."""
        for attempt in range(self._patience.max_retries + 1):
            is_last = attempt == self._patience.max_retries
            try:
                response = await self._connected().request(
                    method,
                    f"{self._root}/{route}",
                    data=body,
                    headers={"content-type": "application/json"},
                    allow_redirects=False,
                )
            except aiohttp.InvalidURL as error:
                raise RequestError(
                    f"{self._base_url!r} is no address of a server.", "Write for example http://127.0.0.1:8000."
                ) from error
            except aiohttp.SocketTimeoutError as error:
                raise self._too_slow() from error
            except (aiohttp.ClientConnectionError, TimeoutError) as error:
                if is_last:
                    raise self._unreachable(error) from error
                await asyncio.sleep(self._delay_s(attempt, None))
                continue
            async with response:
                if response.status < 300:
                    yield response
                    return
                failure = await self._failure(response)
            if is_last or response.status not in (429, 503):
                raise failure
            await asyncio.sleep(self._delay_s(attempt, response.headers.get("retry-after")))

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            key = self._api_key
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                headers={"authorization": f"Bearer {key}"} if key is not None else {},
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self._patience.connect_timeout_s, sock_read=self._patience.timeout_s
                ),
            )
        return self._session

    def _delay_s(self, attempt: int, retry_after: str | None) -> float:
        """Doubling with up to half at random, never less than the server asks for, never more than the longest."""
        delay_s = self._patience.first_delay_s * 2**attempt * (1 + random.random() / 2)
        if retry_after is not None and retry_after.isdecimal():
            delay_s = max(delay_s, float(retry_after))
        return min(delay_s, self._patience.most_delay_s)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        try:
            return await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._broken() from error

    async def _failure(self, response: aiohttp.ClientResponse) -> RequestError:
        content = await self._read(response)
        try:
            detail = decode_reply(content).error or ErrorDetail()
        except msgspec.DecodeError:
            detail = ErrorDetail(content[:200].decode("utf-8", "replace"))
        return to_error(response.status, detail, response.headers.get("retry-after"))

    def _decode(self, content: bytes) -> Reply:
        try:
            return decode_reply(content)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._nonsense(content) from error

    def _nonsense(self, content: bytes) -> RequestError:
        start = content[:100].decode("utf-8", "replace")
        return RequestError(
            f"{self._root} does not answer in OpenAI's form, but with {start!r}.",
            "Check base_url.",
            status=502,
        )

    def _broken(self) -> RequestError:
        return RequestError(
            f"The connection to {self._root} broke in the middle of the answer.",
            "Ask again; the server's log may say why.",
            status=502,
            code="connection_error",
        )

    def _too_slow(self) -> RequestError:
        return RequestError(
            f"{self._root} said nothing for {self._patience.timeout_s:g} s.",
            "Ask for fewer tokens or raise timeout_s.",
            status=504,
            code="timeout",
        )

    def _unreachable(self, error: Exception) -> RequestError:
        return RequestError(
            f"No server answers at {self._base_url} ({str(error) or type(error).__name__}).",
            "Start it, or check base_url.",
            status=503,
            code="connection_error",
        )
