"""The client against a server that plays a script: retries, errors, streams cut anywhere."""

import asyncio
import socket
import subprocess
import sys
import time

import pytest

from danlu.client import Client, Patience
from danlu.core.errors import OverloadedError, RequestError
from danlu.core.records import Completion, Delta, GenerateOptions, Usage
from tests.client.script import CHAT, TEXT, USAGE, event, stream_of

QUICK = Patience(first_delay_s=0.01, max_retries=2, timeout_s=5.0)
ASK = [{"role": "user", "content": "hello"}]


def ask(script, action, **settings):
    """What ``action(client)`` gives, run on a loop of its own."""

    async def run():
        async with Client(script.url, **{"model": "m", "patience": QUICK, **settings}) as client:
            return await action(client)

    return asyncio.run(run())


async def collect(deltas):
    return [delta async for delta in deltas]


def test_chat_sends_the_options_and_reads_the_answer(script):
    script.replies = [(200, {}, CHAT)]
    options = GenerateOptions(max_tokens=7, temperature=0.5, top_p=0.9, top_k=4, stop=("x", "y"), seed=3)
    answer = ask(script, lambda client: client.chat(ASK, options), api_key="sesame")
    usage = Usage(prompt_tokens=2, completion_tokens=3)
    assert answer == Completion(text="Hi", finish_reason="length", usage=usage)
    path, headers, body = script.requests[0]
    assert (path, headers["authorization"]) == ("/v1/chat/completions", "Bearer sesame")
    asked = {"max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "stop": ["x", "y"], "seed": 3}
    assert body == {"model": "m", "messages": ASK, **asked}


def test_complete_asks_the_first_model_of_the_list_and_remembers_it(script):
    script.replies = [(200, {}, {"data": [{"id": "first"}, {"id": "second"}]}), (200, {}, TEXT), (200, {}, TEXT)]

    async def twice(client):
        return [await client.complete("a"), await client.complete("b")]

    answers = ask(script, twice, model=None)
    assert [answer.text for answer in answers] == ["there", "there"]
    assert [path for path, _, _ in script.requests] == ["/v1/models", "/v1/completions", "/v1/completions"]
    assert script.requests[2][2]["model"] == "first"


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_the_address_may_end_in_v1(script, suffix):
    script.replies = [(200, {}, {"data": [{"id": "m"}]})]
    script.url += suffix
    assert ask(script, lambda client: client.models()) == ["m"]
    assert script.requests[0][0] == "/v1/models"


def test_a_stream_is_read_however_it_is_cut(script):
    events = (
        event(choices=[{"delta": {"role": "assistant", "content": ""}}])
        + b": ping\r\n\r\n"
        + event(choices=[{"delta": {"content": "he\nllo 丹"}}]).replace(b"\n\n", b"\r\n\r\n")
        + event(choices=[{"delta": {"content": "x" * 200_000}, "finish_reason": None}])
        + event(choices=[{"delta": {}, "finish_reason": "stop"}])
        + event(choices=[], usage=USAGE)
        + b"data: [DONE]\n\n"
    )
    cut = [events[i : i + 7] for i in range(0, 140, 7)]
    script.replies = [stream_of(*cut, events[140:])]
    deltas = ask(script, lambda client: collect(client.stream_chat(ASK)))
    usage = Usage(prompt_tokens=2, completion_tokens=3)
    assert deltas == [
        Delta(text="he\nllo 丹"),
        Delta(text="x" * 200_000),
        Delta(text="", finish_reason="stop", usage=usage),
    ]
    assert script.requests[0][2]["stream_options"] == {"include_usage": True}


def test_an_error_event_in_a_stream_is_raised(script):
    first = event(choices=[{"text": "a"}])
    error = event(error={"message": "The pages ran out.", "code": "no_pages", "param": None})
    script.replies = [stream_of(first, error)]
    with pytest.raises(RequestError, match="The pages ran out") as caught:
        ask(script, lambda client: collect(client.stream_complete("p")))
    assert caught.value.code == "no_pages"


@pytest.mark.parametrize("end", [b"", None])
def test_a_stream_that_breaks_off_is_an_error(script, end):
    script.replies = [stream_of(event(choices=[{"text": "a"}]), end)]
    with pytest.raises(RequestError, match=r"The connection to .* broke in the middle of the answer"):
        ask(script, lambda client: collect(client.stream_complete("p")))
    assert len(script.requests) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_when_it_says(script, status):
    script.replies = [(status, {"retry-after": "1"}, {"error": {"message": "busy"}}), (200, {}, CHAT)]
    started = time.perf_counter()
    patience = Patience(first_delay_s=0.01, most_delay_s=0.3)
    assert ask(script, lambda client: client.chat(ASK), patience=patience).text == "Hi"
    assert 0.3 <= time.perf_counter() - started < 1.0  # it asks for 1 s, the longest delay is shorter


def test_a_server_that_stays_full_is_an_overloaded_error(script):
    script.replies = [(429, {"retry-after": "9"}, {"error": {"message": "The queue is full."}})] * 3
    patience = Patience(first_delay_s=0.01, most_delay_s=0.02, max_retries=2)
    with pytest.raises(OverloadedError, match=r"The queue is full\.") as caught:
        ask(script, lambda client: client.chat(ASK), patience=patience)
    assert caught.value.retry_after_s == 9
    assert len(script.requests) == 3


def test_a_refused_request_is_not_sent_again(script):
    detail = {"message": "top_p is 7.", "type": "invalid_request_error", "param": "top_p", "code": "bad"}
    script.replies = [(400, {}, {"error": detail})]
    with pytest.raises(RequestError, match=r"top_p is 7\.") as caught:
        ask(script, lambda client: client.chat(ASK))
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "top_p", "bad")


def test_an_error_page_of_something_else_is_quoted(script):
    script.replies = [(502, {}, b"<h1>Bad Gateway</h1>")]
    with pytest.raises(RequestError, match="Bad Gateway") as caught:
        ask(script, lambda client: client.chat(ASK))
    assert caught.value.status == 502


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"choices": []}', b'{"choices": 3}', b'{"choices": "\xff"}'])
def test_an_answer_in_another_form_is_named(script, content):
    script.replies = [(200, {}, content)]
    with pytest.raises(RequestError, match="does not answer in OpenAI's form, but with"):
        ask(script, lambda client: client.chat(ASK))


def test_a_redirect_is_not_followed(script):
    script.replies = [(302, {"location": "http://127.0.0.1:9/"}, b"moved")]
    with pytest.raises(RequestError, match="moved"):
        ask(script, lambda client: client.chat(ASK), api_key="sesame")


def test_a_server_without_models_is_named(script):
    script.replies = [(200, {}, {"data": []})]
    with pytest.raises(RequestError, match="has no model"):
        ask(script, lambda client: client.chat(ASK), model=None)


def test_a_connection_dropped_before_the_answer_is_tried_again(script):
    script.replies = [b"", (200, {}, CHAT)]
    assert ask(script, lambda client: client.chat(ASK)).text == "Hi"


def test_no_server_at_the_address_is_a_clear_error(script):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        script.url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(RequestError, match=r"No server answers at http://127\.0\.0\.1:\d+ .* Start it") as caught:
            ask(script, lambda client: client.chat(ASK))
    assert (caught.value.status, caught.value.code) == (503, "connection_error")


def test_an_address_that_is_none_is_named(script):
    script.url = "localhost"
    with pytest.raises(RequestError, match=r"'localhost' is no address of a server\. Write for example"):
        ask(script, lambda client: client.chat(ASK))


def test_a_silent_server_is_a_timeout(script):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        script.url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RequestError, match=r"said nothing for 0\.2 s") as caught:
            ask(script, lambda client: client.chat(ASK), patience=Patience(timeout_s=0.2))
    assert caught.value.status == 504


def test_the_client_never_loads_torch():
    program = "import sys, danlu.client; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False\n"
