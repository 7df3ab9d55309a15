"""A fake engine behind the real server on a loopback port: what every test of the HTTP side stands on."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from danlu.core.errors import OverloadedError, RequestError
from danlu.core.records import Delta, TokenLogprob, Usage
from danlu.serve.engine.request import (
    DetokenizeRequest,
    EngineStatus,
    ModelStatus,
    Reading,
    ReadRequest,
    Reply,
    ServedModel,
    TokenizeRequest,
    TokenizerRequest,
    WriteRequest,
)
from danlu.serve.http.config import HttpConfig
from danlu.serve.http.server import Server, reserve_port

SERVED = ServedModel(
    name="fake", abilities=frozenset({"write", "embed", "classify", "tag", "score"}), context_length=64, width=4,
    labels=("bad", "good"), created=7,
)  # fmt: skip


class FakeTicket:
    def __init__(self):
        self.cancelled = threading.Event()

    def cancel(self):
        self.cancelled.set()


class FakeEngine:
    """Writes ``pieces`` for any prompt, once ``gate`` is open; a word is a token, and token i is the i-th letter."""

    def __init__(self):
        self.pieces, self.delay_s, self.error, self.is_full = ("Hello", ",", " wörld 丹炉"), 0.0, None, False
        self.fail_after, self.age_s, self.is_ready, self.served = None, 0.0, True, [SERVED]
        self.refusal = None
        self.gate, self.tickets, self.seen, self.drain_s = threading.Event(), [], [], None
        self.gate.set()

    def models(self):
        return self.served

    def submit(self, request, on_event):
        ticket = FakeTicket()
        self.tickets.append(ticket)
        self.seen.append(request)
        error = self._refusal(request)
        if error is not None:
            on_event(error)
        elif isinstance(request, WriteRequest):
            threading.Thread(target=self._write, args=(ticket, request, on_event), daemon=True).start()
        else:
            on_event(self._read(request) if isinstance(request, ReadRequest) else Reply(value=self._told(request)))
        return ticket

    def _refusal(self, request):
        if self.refusal is not None:
            return self.refusal
        if self.is_full:
            return OverloadedError("The queue is full.", "Try again later.", retry_after_s=7)
        if isinstance(request, WriteRequest) and not words(request.prompt):
            return RequestError("The prompt is empty.", "Write something.", param="prompt")
        if isinstance(request, WriteRequest) and len(words(request.prompt)) >= 64:
            return RequestError("The prompt is too long.", "Shorten it.", code="context_length_exceeded")
        return None

    def _write(self, ticket, request, on_event):
        options, heads = request.options, len(words(request.prompt))
        pieces = self.pieces[: options.max_tokens]
        usage = Usage(prompt_tokens=heads, completion_tokens=len(pieces), cached_tokens=heads // 2)
        names = {i: piece.encode() for i, piece in enumerate(self.pieces)}
        names |= {100 + i: word.encode() for i, word in enumerate(words(request.prompt))}
        for i, piece in enumerate(pieces):
            while not self.gate.wait(0.005) or ticket.cancelled.wait(self.delay_s):
                if ticket.cancelled.is_set() or self.drain_s == 0.0:
                    return on_event(Delta(text="", finish_reason="abort", usage=usage))
            if i == self.fail_after:
                return on_event(self.error)
            told = options.logprobs is not None
            logprobs = (TokenLogprob(token_id=i, logprob=-0.5, top=((i, -0.5),)[: options.logprobs]),) if told else ()
            prompt = ()
            if request.prompt_logprobs is not None and i == 0:
                known = [
                    TokenLogprob(token_id=100 + k, logprob=-float(k), top=((100 + k, -1.0),)) for k in range(heads)
                ]
                prompt = (None, *known[1:])
            for index in range(options.n):
                on_event(Delta(text=piece, index=index, logprobs=logprobs, prompt_logprobs=prompt, token_ids=(i,),
                               token_bytes=names if logprobs or prompt else {}))  # fmt: skip
        for index in range(options.n):
            reason = "length" if len(pieces) < len(self.pieces) else "stop"
            on_event(Delta(text="", index=index, finish_reason=reason, usage=usage))
        return None

    @staticmethod
    def _read(request):
        given = request.texts or request.images
        num = len(given)
        vectors = b"".join(array("f", [3.0, 4.0, 0.0, float(i)]).tobytes() for i in range(num))
        filled = {
            "embed": {"vectors": vectors, "width": 4},
            "classify": {"labels": ((("good", 0.75), ("bad", 0.25)),) * num},
            "tag": {"spans": ((("CITY", 0, 5, 0.5),),) * num},
            "score": {"scores": tuple(len(p[1]) / 100 for p in given if request.task == "score")},
        }
        return Reading(usage=Usage(prompt_tokens=num, completion_tokens=0), **filled[request.task])

    @staticmethod
    def _told(request):
        match request:
            case TokenizeRequest():
                texts = words(request.prompt)
                return {"ids": list(range(len(texts))), "texts": texts, "context_length": 64}
            case DetokenizeRequest():
                return {"text": "".join(chr(97 + i % 26) for i in request.ids)}
            case TokenizerRequest():
                return {"kind": "bpe", "vocabulary_size": 9, "end_ids": [2], "eos_token": "</s>", "chat_template": None}
        return {"version": 1}

    def status(self):
        model = ModelStatus(
            running=1, waiting=2, prompt_tokens=3, cached_tokens=5, generated_tokens=4, preemptions=6, cache_usage=0.25,
            steps_by_batch_size={1: 5, 3: 2}, queue_waits_s=(0.1, 1.0), queue_counts=(3, 4, 5), queue_total_s=2.5,
            seconds={"model": 1.5},
        )  # fmt: skip
        return EngineStatus(is_ready=self.is_ready, last_step_age_s=self.age_s, models={"fake": model}, restarts=1)

    def stop(self, drain_s):
        self.drain_s, self.is_ready = drain_s, False


def words(prompt):
    if isinstance(prompt, str):
        return prompt.split()
    return [w for item in prompt for w in ([str(item)] if isinstance(item, int) else item["content"].split())]


@dataclass
class Running:
    url: str
    engine: FakeEngine
    server: Server
    thread: threading.Thread

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def call(self, path, body=None, headers=None, method=None):
        """Status, headers and body of one request; ``body`` is bytes or a JSON value."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def error_of(self, path, body=None, headers=None, method=None):
        """Status and error object of a request that must fail."""
        status, sent, content = self.call(path, body, headers, method)
        assert sent["content-type"] == "application/json"
        error = json.loads(content)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return status, error

    def events_of(self, body, path="/v1/chat/completions"):
        """Blocks of a stream, without the blank lines between."""
        _, headers, content = self.call(path, body)
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        *blocks, rest = content.decode().split("\n\n")
        assert rest == ""
        return blocks

    def stop(self) -> None:
        self.engine.gate.set()
        self.server.ask_to_stop()
        self.thread.join(10)
        assert not self.thread.is_alive()


def start_server(engine: FakeEngine, config: HttpConfig) -> Running:
    is_up, urls = threading.Event(), []

    def on_ready(url: str) -> None:
        urls.append(url)
        is_up.set()

    server = Server(engine, config, on_ready)
    thread = threading.Thread(target=server.run_on, args=(reserve_port(config.host, config.port),))
    thread.start()
    assert is_up.wait(10)
    return Running(urls[0], engine, server, thread)


def eventually(check: Callable[[], bool], within_s: float = 5.0) -> bool:
    """Whether ``check`` comes true soon."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(0.005)
    return False


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., bool]:
    return eventually


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """Start a server with its own fake engine; keyword arguments are HttpConfig's."""
    running: list[Running] = []

    def begin(**settings: object) -> Running:
        running.append(start_server(FakeEngine(), HttpConfig(port=0, **settings)))
        return running[-1]

    yield begin
    for one in running:
        one.stop()


@pytest.fixture(scope="session")
def _shared() -> Iterator[Running]:
    running = start_server(FakeEngine(), HttpConfig(port=0, max_body_bytes=100_000))
    yield running
    running.stop()


@pytest.fixture
def running(_shared: Running) -> Iterator[Running]:
    """One server for all tests that need no settings of their own; its engine is as new."""
    _shared.engine.__init__()
    yield _shared
    _shared.engine.gate.set()
