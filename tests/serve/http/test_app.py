"""The API as clients see it: the official openai client, and raw bytes where exactness matters."""

import asyncio
import json
import socket
import urllib.error
import urllib.request

import openai
import pytest

from danlu.core.errors import ModelError, RequestError

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "say hello"}]}
STREAM = {**CHAT, "stream": True}
TEXT = {"model": "fake", "prompt": "say hello"}


def test_openai_client_gets_a_chat_answer(running):
    with openai.OpenAI(base_url=running.url + "/v1", api_key="none") as client:
        answer = client.chat.completions.create(model="fake", messages=CHAT["messages"], stop="x", seed=5, max_tokens=9)
        assert answer.choices[0].message.content == "Hello, wörld 丹炉"
        assert (answer.choices[0].finish_reason, answer.object) == ("stop", "chat.completion")
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (2, 3, 5)
        assert answer.id.startswith("chatcmpl-")
        assert [model.id for model in client.models.list()] == ["fake"]
        assert client.models.retrieve("fake").context_length == 64
    seen = running.engine.seen[-1]
    options = seen.options
    assert seen.prompt == [{"role": "user", "content": "say hello"}]
    assert (options.stop, options.seed, options.max_tokens, options.temperature) == (("x",), 5, 9, 1.0)


def test_openai_client_streams_a_chat_answer_with_usage(running):
    with openai.OpenAI(base_url=running.url + "/v1", api_key="none") as client:
        stream = client.chat.completions.create(
            model="fake", messages=CHAT["messages"], stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello, wörld 丹炉"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 5
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_async_openai_client_gets_many_answers_at_once(running):
    async def ask_many():
        async with openai.AsyncOpenAI(base_url=running.url + "/v1", api_key="none") as client:
            asks = [client.completions.create(model="fake", prompt="go", max_tokens=2) for _ in range(20)]
            return await asyncio.gather(*asks)

    answers = asyncio.run(ask_many())
    assert {(a.choices[0].text, a.choices[0].finish_reason) for a in answers} == {("Hello,", "length")}


def test_openai_client_streams_completions_of_several_prompts(running):
    with openai.OpenAI(base_url=running.url + "/v1", api_key="none") as client:
        texts = {0: "", 1: "", 2: ""}
        for chunk in client.completions.create(model="fake", prompt=["a", "b", "c"], stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
    assert set(texts.values()) == {"Hello, wörld 丹炉"}


def test_the_stream_is_exact(running):
    running.engine.pieces = ("Hi",)
    blocks = running.events_of({**CHAT, "stream": True})
    assert blocks[-1] == "data: [DONE]"
    chunks = [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Hi"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert all("usage" not in chunk for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1


@pytest.mark.parametrize(
    ("prompt", "seen"), [("ab", ["ab"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])]
)
def test_completions_take_texts_and_token_ids(running, prompt, seen):
    status, _, content = running.call("/v1/completions", {**TEXT, "prompt": prompt})
    assert status == 200
    assert sorted(map(str, (request.prompt for request in running.engine.seen))) == sorted(map(str, seen))
    answer = json.loads(content)
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(seen)))
    assert answer["usage"]["completion_tokens"] == 3 * len(seen)


def test_an_answers_default_length_is_bounded_by_the_context(running):
    running.call("/v1/chat/completions", CHAT)
    assert running.engine.seen[-1].options.max_tokens == 64
    running.call("/v1/chat/completions", {**CHAT, "max_tokens": 3, "max_completion_tokens": 2})
    assert running.engine.seen[-1].options.max_tokens == 2


def test_an_unknown_model_is_404(running):
    status, error = running.error_of("/v1/chat/completions", {**CHAT, "model": "gpt-9"})
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert error["message"] == "There is no model 'gpt-9'. This server has 'fake'."
    assert running.error_of("/v1/models/a/b")[0] == 404


def test_a_prompt_longer_than_the_context_has_openais_code(running):
    status, error = running.error_of("/v1/completions", {**TEXT, "prompt": "word " * 100})
    assert (status, error["code"]) == (400, "context_length_exceeded")


def test_prompts_before_a_refused_one_are_cancelled(running):
    running.engine.gate.clear()
    assert running.error_of("/v1/completions", {**TEXT, "prompt": ["fine", "word " * 100]})[0] == 400
    assert running.engine.tickets[0].cancelled.wait(2)


def test_a_full_queue_is_429_with_retry_after(running):
    running.engine.is_full = True
    status, headers, content = running.call("/v1/chat/completions", {**CHAT, "stream": True})
    assert (status, headers["retry-after"]) == (429, "7")
    assert json.loads(content)["error"]["code"] == "rate_limit_exceeded"
    client = openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0)
    with client, pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="fake", messages=CHAT["messages"])


@pytest.mark.parametrize("declares_length", [True, False])
def test_a_body_over_the_limit_is_413(running, declares_length):
    body = b"x" * 100_001
    data = body if declares_length else iter([body])
    request = urllib.request.Request(running.url + "/v1/completions", data, {"content-type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as caught, urllib.request.urlopen(request, timeout=10):
        pass
    with caught.value as error:
        assert error.code == 413
        assert "larger than 100,000 bytes" in json.loads(error.read())["error"]["message"]


def test_an_unknown_route_and_a_wrong_method_get_the_error_object(running):
    status, error = running.error_of("/v1/chat/completion")
    assert (status, error["code"]) == (404, "unknown_url")
    assert error["message"] == "GET /v1/chat/completion is not served. Did you mean '/v1/chat/completions'?"
    status, headers, content = running.call("/v1/completions")
    assert (status, headers["allow"]) == (405, "POST")
    assert json.loads(content)["error"]["message"] == "GET /v1/completions is not served. Use POST."
    assert running.error_of("/v1/completions/")[0] == 404


@pytest.mark.parametrize("is_stream", [True, False])
def test_an_engine_failure_before_the_first_piece_is_a_500_that_leaks_nothing(running, caplog, is_stream):
    running.engine.error, running.engine.fail_after = ModelError("/secret/path broke"), 0
    status, headers, content = running.call("/v1/chat/completions", {**CHAT, "stream": is_stream})
    error = json.loads(content)["error"]
    assert (status, error["type"], error["code"]) == (500, "server_error", "internal_error")
    assert "secret" not in content.decode()
    assert headers["x-request-id"] in error["message"]
    assert headers["x-request-id"] in caplog.text
    assert "/secret/path broke" in caplog.text


def test_an_error_after_the_first_piece_is_an_event_and_no_done_follows(running):
    running.engine.error, running.engine.fail_after = RequestError("The pages ran out.", status=503, code="no_pages"), 1
    running.engine.delay_s = 0.05
    blocks = running.events_of({**CHAT, "stream": True})
    assert json.loads(blocks[-1].removeprefix("data: ")) == {
        "error": {"message": "The pages ran out.", "type": "server_error", "param": None, "code": "no_pages"}
    }
    assert "Hello" in blocks[1]
    client = openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0)
    with client, pytest.raises(openai.APIError, match="The pages ran out"):
        list(client.chat.completions.create(model="fake", messages=CHAT["messages"], stream=True))


def test_a_failure_nobody_foresaw_is_a_500_under_a_request_id(running, monkeypatch, caplog, eventually):
    def explode():
        raise ZeroDivisionError("private detail")

    monkeypatch.setattr(running.engine, "status", explode)
    status, error = running.error_of("/health")
    assert (status, error["code"]) == (500, "internal_error")
    assert "private detail" not in error["message"]
    assert eventually(lambda: "ZeroDivisionError: private detail" in caplog.text)


def _send_and_hang_up(running, body, wait_for_bytes):
    host, port = running.url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(data)}\r\n\r\n"
        sock.sendall(head.encode() + data)
        while not running.engine.tickets or (wait_for_bytes and b"Hello" not in sock.recv(4096)):
            pass


@pytest.mark.parametrize(("is_stream", "is_queued"), [(True, True), (True, False), (False, True)])
def test_a_client_that_hangs_up_is_cancelled(running, is_stream, is_queued):
    if is_queued:
        running.engine.gate.clear()
    else:
        running.engine.pieces, running.engine.delay_s = ("Hello",) * 1000, 0.01
    _send_and_hang_up(running, {**CHAT, "stream": is_stream, "max_tokens": 60}, wait_for_bytes=not is_queued)
    assert running.engine.tickets[0].cancelled.wait(2)


def test_a_waiting_stream_is_kept_open_with_comments(start):
    running = start(ping_s=0.05)
    running.engine.gate.clear()
    request = urllib.request.Request(
        running.url + "/v1/chat/completions", json.dumps({**CHAT, "stream": True}).encode()
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        lines = [response.readline() for _ in range(6)]
        running.engine.gate.set()
        assert b"data: [DONE]" in response.read()
    assert lines.count(b": ping\n") >= 2


def test_an_answer_past_its_deadline_is_cancelled(start):
    running = start(request_timeout_s=0.1, ping_s=0.04)
    running.engine.gate.clear()
    status, error = running.error_of("/v1/chat/completions", CHAT)
    assert (status, error["code"]) == (504, "timeout")
    assert error["message"].startswith("The answer was not finished within 0.1 s.")
    assert running.engine.tickets[0].cancelled.is_set()
    assert '"code":"timeout"' in running.events_of({**CHAT, "stream": True})[-1]


def test_a_body_that_never_comes_is_408(start):
    running = start(read_timeout_s=0.2)
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{")
        answer = sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"The body had not arrived after 0.2 s" in answer


def test_health_follows_the_scheduler_and_readiness_the_engine(running):
    assert running.call("/health")[0] == 200
    assert running.call("/ready")[0] == 200
    running.engine.age_s, running.engine.is_ready = 61.0, False
    status, _, content = running.call("/health")
    assert (status, json.loads(content)) == (503, {"status": "stalled", "last_step_age_s": 61.0})
    assert running.call("/ready")[0] == 503


def test_the_page_loads_nothing_from_elsewhere_and_runs_under_its_policy(running):
    _, headers, page = running.call("/")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    for name in ("/page.css", "/page.js", "/icon.svg"):
        assert name.encode() in page
        status, _, content = running.call(name)
        assert status == 200
        assert b"innerHTML" not in content
        assert b"http" not in content.replace(b"http://www.w3.org/2000/svg", b"").replace(b"HTTP", b"")
    assert b"<style" not in page
    assert b"style=" not in page


def test_the_page_composes_the_prompt_of_the_recipe(running):
    page = running.call("/")[2].decode()
    names = [
        part.split('"')[0] for part in page.split('form id="form-copy"')[1].split("</form>")[0].split('name="')[1:]
    ]
    assert names == ["Title", "Class", "Material", "Size", "Fit", "Colour", "Occasion"]
    assert "Write product copy." in running.call("/page.js")[2].decode()
