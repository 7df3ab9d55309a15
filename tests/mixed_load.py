"""A server's bad day: every kind of request, good ones and broken ones, many of which nobody waits for.

For the storm of the tests and the hours of bench/soak.py. Each action takes an HTTP session and a random source, and
gives back the status it saw, or what it did instead of waiting for one.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

WORDS = [
    "the",
    "a",
    "navy",
    "cotton",
    "dress",
    "top",
    "skirt",
    "has",
    "pockets",
    "sleeves",
    "and",
    "with",
    "loose",
    "fitted",
    "fit",
    "丹炉",
    "soft",
    "lined",
    "look",
    "i",
    "love",
    "it",
]
LIMIT_S = 120.0
"""A request that takes longer counts as hung."""

Action = Callable[[aiohttp.ClientSession, random.Random], Awaitable[str]]


def text(draw: random.Random, most: int = 60) -> str:
    """Some words."""
    return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))


def chat(draw: random.Random, **changes: Any) -> dict[str, Any]:
    """A conversation."""
    begin = [{"role": "system", "content": "You sell clothes." * draw.randint(1, 3)}] if draw.random() < 0.5 else []
    messages = [*begin, {"role": "user", "content": text(draw)}]
    body = {
        "model": "chat",
        "messages": messages,
        "max_tokens": draw.randint(1, 40),
        "temperature": draw.choice([0, 1]),
    }
    return {**body, **changes}


def schema(draw: random.Random) -> dict[str, Any]:
    """A format nobody asked for before."""
    names = draw.sample("abcdefghij", draw.randint(1, 3))
    kinds: list[dict[str, Any]] = [{"type": "integer"}, {"type": "boolean"}, {"enum": [draw.random(), "x"]}]
    properties = {name: draw.choice(kinds) for name in names}
    made = {"type": "object", "properties": properties, "required": names, "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "made", "schema": made}}


async def post(session: aiohttp.ClientSession, path: str, body: Any) -> str:
    """Ask and read the answer to its end."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with session.post(path, data=data, headers={"Content-Type": "application/json"}) as response:
        content = await response.read()
        if response.content_type == "text/event-stream":
            return "broken" if b'"error"' in content else "200"
        return str(response.status)


async def hang_up(session: aiohttp.ClientSession, draw: random.Random, path: str, body: Any) -> str:
    """Ask, and be gone before the answer is."""
    try:
        async with asyncio.timeout(draw.choice([0.0, 0.001, 0.01, 0.05])):
            return await post(session, path, body)
    except TimeoutError:
        return "hung up"


async def read_some(session: aiohttp.ClientSession, draw: random.Random, body: dict[str, Any]) -> str:
    """Read a few pieces of a stream and leave."""
    async with session.post("/v1/chat/completions", json={**body, "stream": True}) as response:
        if response.status != 200:
            return str(response.status)
        for _ in range(draw.randint(1, 6)):
            await response.content.readline()
        response.close()
        return "hung up"


async def _answer(session: aiohttp.ClientSession, draw: random.Random) -> str:
    return await post(session, "/v1/chat/completions", chat(draw, n=draw.randint(1, 3), stop=["dress"]))


async def _stream(session: aiohttp.ClientSession, draw: random.Random) -> str:
    return await post(session, "/v1/chat/completions", chat(draw, stream=True, stream_options={"include_usage": True}))


async def _complete(session: aiohttp.ClientSession, draw: random.Random) -> str:
    body = {"model": "chat", "prompt": [text(draw), text(draw)], "max_tokens": 8, "echo": True, "logprobs": 2}
    return await post(session, "/v1/completions", body)


async def _long(session: aiohttp.ClientSession, draw: random.Random) -> str:
    body = {"model": "chat", "prompt": text(draw, 500), "max_tokens": 200, "ignore_eos": True}
    return await (post if draw.random() < 0.3 else lambda s, p, b: hang_up(s, draw, p, b))(
        session, "/v1/completions", body
    )


async def _fill(session: aiohttp.ClientSession, draw: random.Random) -> str:
    return await post(session, "/v1/chat/completions", chat(draw, response_format=schema(draw), max_tokens=60))


async def _call(session: aiohttp.ClientSession, draw: random.Random) -> str:
    parameters = schema(draw)["json_schema"]["schema"]
    tool = {"type": "function", "function": {"name": f"f{draw.randint(0, 99)}", "parameters": parameters}}
    body = chat(draw, tools=[tool], tool_choice=draw.choice(["auto", "required"]), stream=draw.random() < 0.5)
    return await post(session, "/v1/chat/completions", body)


async def _read(session: aiohttp.ClientSession, draw: random.Random) -> str:
    path, model = draw.choice(
        [("/v1/embeddings", "sentences"), ("/v1/classify", "classes"), ("/v1/tag", "tags")]
    )  # fmt: skip
    return await post(session, path, {"model": model, "input": [text(draw, 12) for _ in range(draw.randint(1, 20))]})


async def _rank(session: aiohttp.ClientSession, draw: random.Random) -> str:
    documents = [text(draw, 12) for _ in range(5)]
    return await post(session, "/v1/rerank", {"model": "sentences", "query": text(draw, 5), "documents": documents})


async def _respond(session: aiohttp.ClientSession, draw: random.Random) -> str:
    return await post(session, "/v1/responses", {"model": "chat", "input": text(draw), "max_output_tokens": 8})


async def _leave(session: aiohttp.ClientSession, draw: random.Random) -> str:
    return await read_some(session, draw, chat(draw, max_tokens=300, ignore_eos=True, n=draw.randint(1, 2)))


async def _leave_early(session: aiohttp.ClientSession, draw: random.Random) -> str:
    path, body = draw.choice(
        [
            ("/v1/chat/completions", chat(draw, max_tokens=300, response_format=schema(draw))),
            ("/v1/chat/completions", chat(draw, max_tokens=300, num_beams=3, temperature=0)),
            ("/v1/embeddings", {"model": "sentences", "input": [text(draw, 12)] * 50}),
        ]
    )
    return await hang_up(session, draw, path, body)


async def _late(session: aiohttp.ClientSession, draw: random.Random) -> str:
    body = chat(draw, max_tokens=500, ignore_eos=True, timeout=draw.choice([0.001, 0.01, 0.05]))
    return await post(session, "/v1/chat/completions", body)


async def _malformed(session: aiohttp.ClientSession, draw: random.Random) -> str:
    good = json.dumps(chat(draw)).encode()
    body = draw.choice(
        [
            good[: draw.randrange(len(good))],
            good.replace(b'"user"', b'"\xff\xfe"'),
            b"[" * 5000,
            b'{"model": "chat", "messages": [], "n": 1e400}',
            json.dumps({"model": "chat", "messages": draw.random()}).encode(),
            json.dumps(chat(draw, max_tokens=-1)).encode(),
            json.dumps(chat(draw, temperature="hot", model="nobody")).encode(),
            json.dumps(chat(draw, response_format={"type": "json_schema", "json_schema": {"schema": 7}})).encode(),
            json.dumps({"model": "chat", "prompt": [1, 10**9]}).encode(),
            json.dumps({"model": "chat", "prompt": "x " * 5000}).encode(),
        ]
    )
    return await post(session, draw.choice(["/v1/chat/completions", "/v1/completions"]), body)


ACTIONS: tuple[tuple[Action, int], ...] = (
    (_answer, 3), (_stream, 3), (_complete, 2), (_long, 1), (_fill, 2), (_call, 1), (_read, 3), (_rank, 1),
    (_respond, 1), (_leave, 4), (_leave_early, 4), (_late, 3), (_malformed, 4),
)  # fmt: skip
"""Each with its share."""


async def mixed_load(
    url: str, *, workers: int = 8, num_requests: int | None = None, seconds: float | None = None, seed: int = 0
) -> Counter[str]:
    """Statuses by number, until so many requests were sent or so many seconds are over. Raises TimeoutError for a
    request that hangs."""
    left = num_requests if num_requests is not None else 1 << 60
    end = time.monotonic() + (seconds if seconds is not None else 1e9)
    seen: Counter[str] = Counter()
    actions, shares = zip(*ACTIONS, strict=True)

    async def work(draw: random.Random) -> None:
        nonlocal left
        while left > 0 and time.monotonic() < end:
            left -= 1
            (action,) = draw.choices(actions, shares)
            async with asyncio.timeout(LIMIT_S):
                seen[await action(session, draw)] += 1

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector) as session, asyncio.TaskGroup() as group:
        for number in range(workers):
            group.create_task(work(random.Random(seed * 1000 + number)))
    return seen
