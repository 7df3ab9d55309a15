"""The load client against a server whose every delay is known."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from danlu.client.load import Level, LoadConfig, run_load
from danlu.client.load_ask import AskConfig
from danlu.client.load_prompts import PromptConfig
from danlu.client.load_report import Report
from danlu.client.load_wire import Pool
from danlu.core.errors import ConfigError, RequestError

FIRST_S, GAP_S = 0.04, 0.01


class Stub:
    """Answers with as many words as asked for, each at a known time."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.connections: set[Any] = set()
        self.running = self.most = 0
        self.can_tokenize = True
        self.models_status = 200
        self.words = "hi "
        self.refuse: Callable[[int], web.Response | None] = lambda number: None
        self.end: list[bytes] = [b"data: [DONE]\n\n"]
        self.url = ""

    async def models(self, request: web.Request) -> web.Response:
        if self.models_status != 200:
            return web.Response(status=self.models_status, text="<html>oops</html>")
        return web.json_response({"data": [{"id": "first"}, {"id": "second"}]})

    async def tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        if not self.can_tokenize:
            return web.json_response({"error": {"message": "no such route"}}, status=404)
        text = body["prompt"] if "prompt" in body else "chat template " + body["messages"][0]["content"]
        return web.json_response({"count": len(text.split())})

    async def embed(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        return web.json_response({"data": [], "usage": {"prompt_tokens": 6, "total_tokens": 6}})

    async def write(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        refusal = self.refuse(len(self.bodies))
        if refusal is not None:
            return refusal
        self.connections.add(request.transport)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return await self._stream(request, body)
        finally:
            self.running -= 1

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        is_chat = "messages" in body

        async def send(text: str, reason: str | None) -> None:
            choice: dict[str, Any] = {"delta": {"content": text}} if is_chat else {"text": text}
            await response.write(b"data: " + json.dumps({"choices": [{**choice, "finish_reason": reason}]}).encode())
            await response.write(b"\n\n")  # an event in two pieces

        await response.write(b": ping\n\n")
        await send("", None)  # the role: no token yet
        await asyncio.sleep(FIRST_S)
        for number in range(body["max_tokens"]):
            await asyncio.sleep(GAP_S if number else 0)
            await send(self.words, "length" if number + 1 == body["max_tokens"] else None)
        prompt = body["messages"][-1]["content"] if is_chat else body["prompt"]
        usage = {
            "prompt_tokens": len(prompt.split()), "completion_tokens": body["max_tokens"],
            "prompt_tokens_details": {"cached_tokens": 1},
        }  # fmt: skip
        await response.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
        for piece in self.end:
            await response.write(piece)
        return response


@asynccontextmanager
async def running(stub: Stub) -> AsyncIterator[Stub]:
    app = web.Application()
    app.router.add_get("/v1/models", stub.models)
    app.router.add_post("/tokenize", stub.tokenize)
    app.router.add_post("/v1/embeddings", stub.embed)
    app.router.add_post("/v1/completions", stub.write)
    app.router.add_post("/v1/chat/completions", stub.write)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    stub.url = f"http://{host}:{port}"
    try:
        yield stub
    finally:
        await runner.cleanup()


SMALL = PromptConfig(input_tokens=5, output_tokens=4)


def measure(stub: Stub, config: LoadConfig, **more: Any) -> list[tuple[Level, Report]]:
    async def run() -> list[tuple[Level, Report]]:
        async with running(stub):
            return await run_load(stub.url + "/v1", config, **more)

    return asyncio.run(run())


def one(stub: Stub, **fields: Any) -> Report:
    (_, report), *_ = measure(stub, LoadConfig(**{"prompts": SMALL, "num_requests": 4, **fields}))
    return report


def test_known_delays_become_the_metrics() -> None:
    report = one(Stub(), concurrency=(2,))
    assert (report.completed, report.failed, report.peak_concurrency) == (4, 0, 2)
    assert (report.total_input_tokens, report.total_output_tokens, report.total_cached_tokens) == (20, 16, 4)
    spreads = {name: spread.median for name, spread in report.spreads.items()}
    assert 1000 * FIRST_S <= spreads["ttft"] < 1000 * FIRST_S + 60
    assert 1000 * GAP_S * 0.9 <= spreads["tpot"] < 1000 * GAP_S + 20
    assert 1000 * GAP_S * 0.5 <= spreads["itl"] < 1000 * GAP_S + 20
    assert spreads["e2el"] >= 1000 * (FIRST_S + 3 * GAP_S)
    assert len(report.outcomes[0].stamps_s) == 4  # neither the ping nor the role counts


def test_a_closed_loop_keeps_so_many_requests_under_way_and_its_connections() -> None:
    stub = Stub()
    heard: list[str] = []

    def on_level(level: Level) -> Callable[[Any], None]:
        return lambda outcome: heard.append(str(level))

    config = LoadConfig(prompts=SMALL, num_requests=6, concurrency=(1, 3))
    reports = measure(stub, config, on_level=on_level)
    assert [report.peak_concurrency for _, report in reports] == [1, 3]
    assert (stub.most, len(stub.connections)) == (3, 3)
    assert heard == ["concurrency 1"] * 6 + ["concurrency 3"] * 6
    assert len({body["prompt"] for body in stub.bodies}) == 13  # no level repeats another's prompts


def test_an_open_loop_does_not_wait_for_answers() -> None:
    report = one(Stub(), rate=(200.0,), num_requests=8, num_warmups=0)
    assert report.completed == 8
    assert report.peak_concurrency > 2
    assert one(Stub(), rate=(200.0,), concurrency=(2,), num_requests=8).peak_concurrency == 2


def test_what_was_asked_for_is_sent() -> None:
    stub = Stub()
    ask = AskConfig(ignore_eos=True, temperature=0.5, extra_body='{"top_k": 3}')
    config = LoadConfig(prompts=SMALL, num_requests=3, models=("a", "b"), ask=ask, num_warmups=0)
    measure(stub, config, api_key="k")
    body = stub.bodies[0]
    assert body | {"prompt": ""} == {
        "model": "a", "prompt": "", "max_tokens": 4, "temperature": 0.5, "stream": True, "ignore_eos": True,
        "stream_options": {"include_usage": True}, "top_k": 3,
    }  # fmt: skip
    assert [len(body["prompt"].split()) for body in stub.bodies] == [5, 5, 5]
    assert [body["model"] for body in stub.bodies] == ["a", "b", "a"]


def test_a_conversation_carries_what_was_said() -> None:
    stub = Stub()
    prompts = PromptConfig(input_tokens=5, output_tokens=2, turns=3)
    report = one(stub, prompts=prompts, ask=AskConfig(endpoint="chat"), num_requests=3)
    assert report.completed == 3
    last = stub.bodies[-1]["messages"]
    assert [message["role"] for message in last] == ["user", "assistant", "user", "assistant", "user"]
    assert last[1]["content"] == last[3]["content"] == "hi hi "
    assert len(last[0]["content"].split()) == 3  # with the template's two


def test_embeddings_have_no_first_token() -> None:
    stub = Stub()
    prompts = PromptConfig(input_tokens=3, batch=2)
    report = one(stub, prompts=prompts, ask=AskConfig(endpoint="embeddings"))
    assert (report.completed, report.total_input_tokens, set(report.spreads)) == (4, 24, {"e2el"})
    assert [len(text.split()) for text in stub.bodies[0]["input"]] == [3, 3]


def test_answers_to_a_schema_are_checked_to_be_json(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array"}')
    stub = Stub()
    assert one(stub, ask=AskConfig(json_schema=schema)).num_valid == 0
    assert stub.bodies[0]["response_format"]["json_schema"]["schema"] == {"type": "array"}
    stub.words = "1"
    assert one(stub, ask=AskConfig(json_schema=schema)).num_valid == 4


def test_refusals_are_counted_by_status_with_what_was_said() -> None:
    stub = Stub()
    full = {"error": {"message": "The queue is full.", "code": "rate_limit_exceeded"}}
    stub.refuse = lambda number: web.json_response(full, status=429) if number in (2, 4) else None
    report = one(stub)  # the first is the warm-up
    assert (report.completed, dict(report.failures)) == (2, {"429": 2})
    assert report.messages == {"429": "The queue is full."}


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ([b'data: {"error": {"message": "out of memory"}}\n\n'], "out of memory"),
        ([b"data: {nonsense\n\n"], "an event is not JSON"),
    ],
)
def test_a_stream_that_ends_in_an_error_has_failed(end: list[bytes], said: str) -> None:
    stub = Stub()
    stub.end = end
    report = one(stub, num_warmups=0)
    assert (report.completed, dict(report.failures)) == (0, {"broken": 4})
    assert said in report.messages["broken"]


def test_a_server_that_does_not_tokenize_gets_prompts_counted_in_words() -> None:
    stub = Stub()
    stub.can_tokenize = False
    one(stub)
    assert {len(body["prompt"].split()) for body in stub.bodies} == {5}


def test_a_request_that_takes_too_long_has_failed() -> None:
    report = one(Stub(), ask=AskConfig(timeout_s=0.02), num_warmups=0)
    assert dict(report.failures) == {"timeout": 4}
    assert report.messages["timeout"] == "no whole answer within 0.02 s"


def test_no_request_is_sent_after_the_time_is_up() -> None:
    report = one(Stub(), num_requests=1000, duration_s=0.3, concurrency=(4,))
    assert 4 <= report.completed < 60


def test_a_test_that_is_stopped_reports_what_it_has() -> None:
    async def run() -> list[tuple[Level, Report]]:
        async with running(Stub()) as stub:
            task: asyncio.Task[Any] | None = None
            seen = 0

            def on_outcome(_: Any) -> None:
                nonlocal seen
                seen += 1
                if seen == 2:
                    assert task is not None
                    task.cancel()

            config = LoadConfig(prompts=SMALL, num_requests=50, concurrency=(1, 2))
            task = asyncio.create_task(run_load(stub.url, config, on_level=lambda _: on_outcome))
            return await task

    reports = asyncio.run(run())
    assert [(report.completed, report.is_interrupted) for _, report in reports] == [(2, True)]


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(RequestError, match=r"No server answers at http://127.0.0.1:9 \(.*Start it, or give its addr"):
        asyncio.run(run_load("http://127.0.0.1:9", LoadConfig()))


@pytest.mark.parametrize(("status", "hint"), [(500, "Check the address"), (401, "Give --api-key")])
def test_a_server_that_lists_no_models_is_told_with_its_status(status: int, hint: str) -> None:
    stub = Stub()
    stub.models_status = status
    with pytest.raises(RequestError, match=rf"does not list its models \(HTTP {status}\): <html>oops</html> {hint}"):
        one(stub)


def test_a_first_request_that_fails_ends_the_test() -> None:
    stub = Stub()
    stub.refuse = lambda number: web.json_response({"error": {"message": "no such model"}}, status=404)
    with pytest.raises(RequestError) as caught:
        one(stub)
    assert "did not answer the first request (404): no such model Mend that" in str(caught.value)
    assert caught.value.status == 404


def test_a_connection_that_was_closed_while_idle_is_made_anew() -> None:
    async def run() -> list[int]:
        open_now: list[asyncio.StreamWriter] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            open_now.append(writer)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        pool = Pool(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        statuses: list[int] = []
        for _ in range(2):
            statuses.append((await pool.ask("GET", "/")).status)
            open_now.pop().close()
            await asyncio.sleep(0.01)
        pool.close()
        server.close()
        return statuses

    assert asyncio.run(run()) == [200, 200]


@pytest.mark.parametrize("url", ["ftp://here", "http://", "http://a:port"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"is no address of a server\. Write for example http://127"):
        Pool(url)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_requests": 0}, "num_requests is 0. Use 1 or more."),
        ({"concurrency": (0,)}, "concurrency is 0. Use 1 or more."),
        ({"concurrency": (1, 2), "rate": (1.0,)}, "concurrency is (1, 2) with a rate. Give one limit, or no rate."),
        ({"rate": (-1.0,)}, "rate is -1.0. Use more than 0."),
        ({"num_warmups": -1}, "num_warmups is -1. Use 0 or more."),
        ({"percentiles": (101.0,)}, "percentiles are (101.0,). Use 0 to 100."),
        ({"prompts": PromptConfig(turns=2)}, "turns is 2 on completions. Conversations need chat."),
        ({"prompts": PromptConfig(batch=2)}, "batch is 2 on completions. Batches are for embeddings."),
    ],
)
def test_a_test_that_cannot_be_run_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LoadConfig(**fields)
    assert str(caught.value) == said


def test_bodies_that_are_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'extra_body is .*Write for example \{"top_k": 1\}'):
        AskConfig(extra_body="[1]")
    with pytest.raises(ConfigError, match="Give a file with a schema"):
        AskConfig(json_schema=tmp_path / "none.json")
    with pytest.raises(ConfigError, match="timeout_s is 0"):
        AskConfig(timeout_s=0)
