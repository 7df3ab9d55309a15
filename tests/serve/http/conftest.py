"""A fake engine behind the real server on a loopback port: what every test of the HTTP side stands on."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from danlu.core.errors import OverloadedError, RequestError
from danlu.core.records import Delta, Score, Usage
from danlu.serve.engine.request import EngineStatus
from danlu.serve.http.config import HttpConfig
from danlu.serve.http.server import Server, reserve_port


class FakeTicket:
    def __init__(self, prompt_tokens):
        self.prompt_tokens = prompt_tokens
        self.cancelled = threading.Event()

    def cancel(self):
        self.cancelled.set()


class FakeEngine:
    """Writes ``pieces`` for any prompt, once ``gate`` is open; a word is a token."""

    name = "fake"
    context_length = 64

    def __init__(self):
        self.pieces, self.delay_s, self.error, self.is_full = ("Hello", ",", " wörld 丹炉"), 0.0, None, False
        self.fail_after, self.age_s, self.is_ready = None, 0.0, True
        self.gate, self.tickets, self.seen, self.drain_s = threading.Event(), [], [], None
        self.gate.set()

    def submit(self, prompt, options, on_event):
        words = prompt.split() if isinstance(prompt, str) else [w for m in prompt for w in self._words(m)]
        if not words:
            raise RequestError("The prompt is empty.", "Write something.", param="prompt")
        if len(words) >= self.context_length:
            raise RequestError("The prompt is too long.", "Shorten it.", code="context_length_exceeded")
        if self.is_full:
            raise OverloadedError("The queue is full.", "Try again later.", retry_after_s=7)
        ticket = FakeTicket(len(words))
        self.tickets.append(ticket)
        self.seen.append((prompt, options))
        threading.Thread(target=self._write, args=(ticket, options, on_event), daemon=True).start()
        return ticket

    @staticmethod
    def _words(message):
        return [message] if isinstance(message, int) else message["content"].split()

    def _write(self, ticket, options, on_event):
        on_event(self._last(ticket, list(self.pieces[: options.max_tokens]), on_event))

    def _last(self, ticket, pieces, on_event):
        usage = Usage(prompt_tokens=ticket.prompt_tokens, completion_tokens=len(pieces))
        for i, piece in enumerate(pieces):
            while not self.gate.wait(0.005) or ticket.cancelled.wait(self.delay_s):
                if ticket.cancelled.is_set() or self.drain_s == 0.0:
                    return Delta(text="", finish_reason="abort", usage=usage)
            if i == self.fail_after:
                return self.error
            on_event(Delta(text=piece))
        return Delta(text="", finish_reason="length" if len(pieces) < len(self.pieces) else "stop", usage=usage)

    def score(self, prompts, continuations):
        return [Score(logprob=-1.0, num_tokens=1, is_greedy=False) for _ in prompts]

    def status(self):
        return EngineStatus(is_ready=self.is_ready, running=1, waiting=2, last_step_age_s=self.age_s, prompt_tokens=3,
                            generated_tokens=4, steps_by_batch_size={1: 5, 3: 2}, cache_usage=0.25)  # fmt: skip

    def stop(self, drain_s):
        self.drain_s, self.is_ready = drain_s, False


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
