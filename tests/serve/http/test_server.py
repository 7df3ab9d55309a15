"""Ports, signals and drain of the server itself, and our own client against it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from danlu.client import Client, Patience, RemoteModel
from danlu.core.errors import OverloadedError, RequestError, ResourceError
from danlu.core.records import GenerateOptions, Usage
from danlu.serve.http.config import HttpConfig
from danlu.serve.http.server import reserve_port, serve

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True}


def test_a_port_in_use_is_named_with_what_to_do(running):
    host, port = running.address
    with pytest.raises(
        ResourceError,
        match=rf"Port {port} on 127.0.0.1 is in use. Stop the program .* another port, such as {port + 1}",
    ):
        reserve_port(host, port)


def test_a_port_taken_between_reserving_and_serving_is_the_same_error(running):
    first = reserve_port("127.0.0.1", 0)
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(first.getsockname())
        thief.listen()
        with pytest.raises(ResourceError, match="is in use"):
            serve(running.engine, HttpConfig(), lambda url: None, first)


def test_a_foreign_address_is_refused():
    with pytest.raises(ResourceError, match=r"203.0.113.7 is no address of this machine.*Use 127.0.0.1"):
        reserve_port("203.0.113.7", 8000)
    with pytest.raises(ResourceError, match=r"no\.such\.host\.invalid is no address"):
        reserve_port("no.such.host.invalid", 8000)


def test_an_open_host_without_a_key_is_warned_of(running, caplog, monkeypatch):
    taken = reserve_port("127.0.0.1", 0)
    taken.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        serve(running.engine, HttpConfig(host="0.0.0.0"), lambda url: None, taken)
    assert "open to the network at 0.0.0.0 without an api_key" in caplog.text


def test_stopping_lets_a_running_answer_finish(start):
    running = start()
    running.engine.pieces, running.engine.delay_s = ("word ",) * 20, 0.02
    answers = []

    def ask():
        request = urllib.request.Request(running.url + "/v1/chat/completions", json.dumps(CHAT).encode())
        with urllib.request.urlopen(request, timeout=10) as response:
            answers.append(json.loads(response.read()))

    thread = threading.Thread(target=ask)
    thread.start()
    while not running.engine.tickets:
        time.sleep(0.005)
    running.server.ask_to_stop()
    thread.join(10)
    running.thread.join(10)
    assert answers[0]["choices"][0]["message"]["content"] == "word " * 20
    assert running.engine.drain_s is not None
    with pytest.raises(OSError), socket.create_connection(running.address, timeout=1):
        pass


def test_asking_twice_ends_a_running_stream_with_an_error(start):
    running = start(ping_s=0.05)
    running.engine.gate.clear()
    request = urllib.request.Request(
        running.url + "/v1/chat/completions", json.dumps({**CHAT, "stream": True}).encode()
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        running.server.ask_to_stop()
        running.server.ask_to_stop()
        content = response.read().decode()
    assert '"code":"aborted"' in content
    assert "[DONE]" not in content


def test_a_drain_says_how_many_are_waited_for_and_how_long(start, caplog):
    running = start(ping_s=0.05, drain_s=7.5)
    running.engine.gate.clear()
    request = urllib.request.Request(
        running.url + "/v1/chat/completions", json.dumps({**CHAT, "stream": True}).encode()
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        running.server.ask_to_stop()
        deadline = time.monotonic() + 5
        while "Stopping" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.005)
        running.engine.gate.set()
        response.read()
    assert "Stopping: requests still answered: 1, for at most 7.5 s. Ctrl-C drops them." in caplog.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_server_and_serve_returns(number):
    program = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("fakes", {str(Path(__file__).with_name("conftest.py"))!r})
fakes = importlib.util.module_from_spec(spec)
import sys; sys.modules["fakes"] = fakes
spec.loader.exec_module(fakes)
from danlu.serve.http.server import serve
engine = fakes.FakeEngine()
serve(engine, fakes.HttpConfig(port=0, drain_s=7.0), lambda url: print(url, flush=True))
print("torch" in sys.modules, engine.is_ready, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(url + "/health", timeout=5) as response:
            assert response.status == 200
        os.kill(process.pid, number)
        assert process.stdout.read() == "False False\n"
    assert process.returncode == 0


@pytest.fixture
def model(running):
    with RemoteModel(
        Client(running.url, patience=Patience(first_delay_s=0.01, max_retries=1, most_delay_s=0.05))
    ) as it:
        yield it


def test_chats_and_texts_are_answered_in_order_with_usage(model):
    prompts = ["one", [{"role": "user", "content": "one two"}], "one two three"] * 10
    answers = model.generate(prompts, GenerateOptions(max_tokens=2))
    assert {answer.text for answer in answers} == {"Hello,"}
    assert {answer.finish_reason for answer in answers} == {"length"}
    assert [answer.usage.prompt_tokens for answer in answers] == [1, 2, 3] * 10


@pytest.mark.parametrize("prompt", ["tell", [{"role": "user", "content": "tell"}]])
def test_a_streams_pieces_join_to_the_generated_text(model, prompt):
    *pieces, last = model.stream(prompt)
    assert "".join(piece.text for piece in pieces) == model.generate([prompt])[0].text == "Hello, wörld 丹炉"
    assert (last.finish_reason, last.usage) == ("stop", Usage(prompt_tokens=1, completion_tokens=3))


def test_leaving_a_stream_early_cancels_it_on_the_server(running, model):
    running.engine.pieces, running.engine.delay_s = ("word ",) * 60, 0.02
    deltas = model.stream("tell")
    next(deltas)
    deltas.close()
    assert running.engine.tickets[0].cancelled.wait(2)


def test_no_more_prompts_go_out_at_once_than_the_bound(running, eventually):
    running.engine.gate.clear()
    with RemoteModel(Client(running.url), concurrency=3) as model, ThreadPoolExecutor(1) as pool:
        answers = pool.submit(model.generate, ["a"] * 12)
        assert eventually(lambda: len(running.engine.tickets) == 3)
        assert not eventually(lambda: len(running.engine.tickets) > 3, within_s=0.1)
        running.engine.gate.set()
        assert len(answers.result(5)) == 12


def test_errors_keep_their_kind_and_code(running, model):
    with pytest.raises(RequestError, match="The prompt is too long") as caught:
        model.generate(["word " * 100])
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
    running.engine.is_full = True
    with pytest.raises(OverloadedError, match="The queue is full") as caught:
        model.generate(["a"])
    assert caught.value.retry_after_s == 7
