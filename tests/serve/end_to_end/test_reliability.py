"""What a real server does when things end: clients that leave, an engine that dies, signals, keys, adapters."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from danlu.models.load import load_model
from danlu.train.adapter import save_adapter
from danlu.train.lora import LoraConfig, add_lora
from tests.serving import Served, eventually, serving
from tests.tiny import write_tiny
from tests.train.adapters import move

pytestmark = pytest.mark.timeout(120)
CONTEXT = 8192
LONG = {"model": "chat", "prompt": "The dress", "max_tokens": CONTEXT - 100, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose longest answer takes seconds."""
    return write_tiny(tmp_path_factory.mktemp("patient") / "model", context=CONTEXT)


@pytest.fixture
def start(patient: Path, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts a server of its own."""
    with ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(
            serving(f"chat={patient}", arguments=arguments, home=tmp_path / "home")
        )


class Streaming:
    """A stream that is read in a thread of its own."""

    def __init__(self, served: Served, **changes: Any) -> None:
        self._connection = served.connect()
        body = json.dumps({**LONG, **changes, "stream": True})
        self._connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        self._response = self._connection.getresponse()
        assert self._response.status == 200
        self.events: list[str] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        assert eventually(lambda: len(self.events) > 2)

    def _read(self) -> None:
        for line in self._response:  # until the server ends it
            if line.startswith(b"data: "):
                self.events.append(line.decode().removeprefix("data: ").strip())

    def rest(self, timeout_s: float = 60) -> list[str]:
        """All events, once it has ended."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the stream has no end"
        self._response.close()
        self._connection.close()
        return self.events


def test_clients_that_leave_free_their_pages_at_once_queued_or_running(start: Callable[..., Served]) -> None:
    served = start("--engine.max-rows", "2", "--engine.step-tokens", "64")
    body = json.dumps({**LONG, "stream": True})
    connections = [served.connect() for _ in range(6)]
    for number, connection in enumerate(connections):
        connection.request("POST", "/v1/completions", body.replace("The dress", f"{number} dresses " * 100))
    assert eventually(lambda: served.metric("danlu:num_requests_running") == 2)
    assert eventually(lambda: served.metric("danlu:num_requests_waiting") == 4)
    assert served.metric("danlu:kv_cache_usage_perc") > 0
    for connection in connections:
        connection.close()
    assert eventually(served.is_idle, 3.0)
    assert served.metric("danlu:request_success_total", finished_reason="abort") == 6


def test_an_engine_that_is_killed_is_told_to_its_clients_and_comes_back(start: Callable[..., Served]) -> None:
    served = start()
    known = served.call("/v1/completions", {**LONG, "max_tokens": 8}).json["choices"][0]["text"]
    stream = Streaming(served)
    pid = served.engine_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    *_, last = stream.rest()
    assert json.loads(last)["error"]["code"] == "engine_restarted"
    ready: list[int] = []
    while (answer := served.call("/v1/completions", {**LONG, "max_tokens": 8})).status != 200:
        assert (answer.status, answer.json["error"]["code"]) == (503, "engine_restarting")
        assert int(answer.headers["retry-after"]) >= 1
        assert served.call("/health").status == 200, "the server itself is well"
        ready.append(served.call("/ready").status)
        time.sleep(0.1)
    assert ready[0] == 503
    assert set(ready[:-1]) <= {503}, "until it serves again, which may be between two questions"
    assert answer.json["choices"][0]["text"] == known
    assert served.metric("danlu:engine_restarts_total") == 1
    assert served.call("/ready").status == 200
    assert served.engine_pid() not in (None, pid)


def test_a_first_signal_lets_answers_finish_and_turns_new_ones_away(start: Callable[..., Served]) -> None:
    served = start()
    stream = Streaming(served, max_tokens=1500)
    engine = served.engine_pid()
    served.process.send_signal(signal.SIGTERM)
    events = stream.rest()
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
    assert served.process.wait(20) == 0
    assert not Path(f"/proc/{engine}").exists()
    with pytest.raises(ConnectionRefusedError):
        served.call("/health")


def test_a_second_signal_cuts_answers_with_an_error(start: Callable[..., Served]) -> None:
    served = start()
    stream = Streaming(served)
    served.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    served.process.send_signal(signal.SIGTERM)
    *_, last = stream.rest(10)
    assert json.loads(last)["error"]["code"] == "aborted"
    assert served.process.wait(20) == 0


def test_a_full_queue_says_when_to_come_again_and_health_stays(start: Callable[..., Served]) -> None:
    served = start("--engine.max-rows", "1", "--engine.max-waiting", "1", "--engine.step-tokens", "16")
    stream = Streaming(served)
    waiting = served.connect()
    waiting.request("POST", "/v1/completions", json.dumps(LONG))
    assert eventually(lambda: served.metric("danlu:num_requests_waiting") == 1)
    refused = served.call("/v1/completions", LONG)
    assert (refused.status, refused.json["error"]["type"]) == (429, "rate_limit_error")
    assert int(refused.headers["retry-after"]) >= 1
    assert served.call("/health").status == 200
    waiting.close()
    served.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    served.process.send_signal(signal.SIGTERM)
    stream.rest(10)


def test_keys_open_every_route_but_health_and_adapters_come_and_go(
    start: Callable[..., Served], patient: Path, tmp_path: Path
) -> None:
    model, config = load_model(patient, precision="fp32"), LoraConfig(rank=4, alpha=8.0)
    move(add_lora(model, config), 0.4)
    save_adapter(model, tmp_path / "adapters" / "shop", config, base="tiny")
    served = start(
        "--api-key", "CLIENT", "--admin-key", "ADMIN", "--adapter-root", str(tmp_path / "adapters"),
    )  # fmt: skip
    client, admin = {"Authorization": "Bearer CLIENT"}, {"Authorization": "Bearer ADMIN"}
    document = served.call("/openapi.json", headers=client).json
    for path, operations in document["paths"].items():
        for method in operations:
            is_open = path in ("/health", "/ready", "/version")
            for wrong in ({}, {"Authorization": "Bearer CLIENTS"}, {"Authorization": "Basic Q0xJRU5U"}):
                body = b"{}" if method == "post" else None
                status = served.call(path, body, method=method.upper(), headers=wrong).status
                assert status == (200 if is_open else 401), (path, wrong)
    ask = {**LONG, "max_tokens": 12}
    plain = served.call("/v1/completions", ask, headers=client).json["choices"][0]["text"]
    load = {"lora_name": "shop", "lora_path": "shop"}
    assert served.call("/v1/load_lora_adapter", load, headers=client).status == 403
    for path in ("../model", "/etc", "shop/../../x", "none"):
        assert served.call("/v1/load_lora_adapter", {**load, "lora_path": path}, headers=admin).status in (
            400,
            403,
            404,
        )
    loaded = served.call("/v1/load_lora_adapter", load, headers=admin)
    assert loaded.status == 200, loaded.content
    tuned = served.call("/v1/completions", {**ask, "model": "shop"}, headers=client).json["choices"][0]["text"]
    assert tuned != plain
    assert served.call("/v1/completions", ask, headers=client).json["choices"][0]["text"] == plain
    assert [it["id"] for it in served.call("/v1/models", headers=client).json["data"]] == ["chat", "shop"]
    assert served.call("/v1/unload_lora_adapter", {"lora_name": "shop"}, headers=admin).status == 200
    assert served.call("/v1/completions", {**ask, "model": "shop"}, headers=client).status == 404
    assert not any("CLIENT" in line or "ADMIN" in line for line in served.lines)


def test_health_answers_while_the_model_works_and_the_engine_stays_alone_with_its_socket(served: Served) -> None:
    connection = served.connect()
    connection.request("POST", "/v1/completions", json.dumps({**LONG, "max_tokens": 900, "n": 8}))
    started = time.monotonic()
    for _ in range(20):
        assert served.call("/health").status == 200
    assert time.monotonic() - started < 5
    connection.close()
    command = Path(f"/proc/{served.engine_pid()}/cmdline").read_bytes().decode().split("\0")
    socket = next(word for word in command if word.endswith("/engine"))
    assert not Path(socket).parent.exists(), "nobody else can connect: the socket's file is gone"
