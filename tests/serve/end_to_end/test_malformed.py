"""What no client should send, sent to a real server: it refuses in its own words, and goes on as if nothing were."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving import Served

pytestmark = pytest.mark.timeout(120)
GOOD = b'{"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}'
POSTS = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/rerank", "/v1/score",
    "/v1/classify", "/v1/tag", "/predict", "/tokenize", "/detokenize", "/tokenizer_info", "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter", "/v1/responses/resp_0/cancel",
)  # fmt: skip


@pytest.fixture(autouse=True)
def unharmed(served: Served) -> Iterator[None]:
    """After each test: the same engine, nothing running, no answer of 500."""
    pid = served.engine_pid()
    yield
    assert served.call("/health").status == 200
    assert served.call("/v1/chat/completions", GOOD).status == 200
    assert served.engine_pid() == pid
    assert not [name for name in served.metrics() if 'http_responses_total{status="500"}' in name]


def formed(schema: Any) -> bytes:
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    return changed(response_format=form)


def deep(begin: str, end: str, depth: int) -> bytes:
    """A schema inside so many others."""
    return formed("HERE").replace(b'"HERE"', f'{begin * depth}{{"type": "null"}}{end * depth}'.encode())


def guided(**kinds: Any) -> bytes:
    return changed(structured_outputs=kinds)


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(GOOD), **fields}).encode()


BROKEN = {
    "nothing": b"",
    "no object": b"[]",
    "cut off": GOOD[:-20],
    "two documents": GOOD + GOOD,
    "bad utf-8": GOOD.replace(b"Hi", b"\xff\xfe\x80"),
    "a lone surrogate": GOOD.replace(b"Hi", rb"\ud800"),
    "not a number": GOOD.replace(b"2}", b"NaN}"),
    "infinity": GOOD.replace(b"2}", b"Infinity}"),
    "1e400": GOOD.replace(b"2}", b"1e400}"),
    "a huge number": GOOD.replace(b"2}", b"9" * 5000 + b"}"),
    "a huge seed": changed(seed=10**30),
    "deep arrays": b"[" * 100_000,
    "a deep field": GOOD.replace(b'"Hi"', b"[" * 5000 + b"]" * 5000),
    "deep unknown field": GOOD.replace(b"2}", b'2, "extra": ' + b'{"a":' * 3000 + b"1" + b"}" * 3000 + b"}"),
    "negative n": changed(n=-1),
    "far too many answers": changed(n=16_384),
    "too many logprobs": changed(logprobs=True, top_logprobs=10**6),
    "ten thousand stops": changed(stop=["x"] * 10_000),
    "a huge bias": changed(logit_bias={str(i): 1 for i in range(100_000)}),
    "a bias of nothing": changed(logit_bias={"x": 1}),
    "a token that is none": changed(stop_token_ids=[10**12]),
    "a wild temperature": changed(temperature=1e308),
    "a negative timeout": changed(timeout=-1),
    "no time": changed(timeout=0),
    "a role of its own": changed(messages=[{"role": "root", "content": "Hi"}]),
    "a template": changed(chat_template="{{ 1 }}"),
    "template options that loop": changed(chat_template_kwargs={"messages": [1], "x": "y"}),
    "no schema": formed(7),
    "a schema of nothing": formed({"enum": []}),
    "a deep schema": deep('{"type": "array", "items": ', "}", 3000),
    "a schema of choices of choices": deep('{"anyOf": [{"type": "string"}, ', "]}", 500),
    "a schema that calls itself": formed({"$ref": "#"}),
    "a schema from elsewhere": formed({"$ref": "http://169.254.169.254/schema.json"}),
    "a long schema": formed({"enum": ["x" * 100 + str(i) for i in range(5000)]}),
    "a schema that explodes": formed(
        {"type": "object", "properties": {f"p{i}": {"type": "string", "maxLength": 10**6} for i in range(400)}}
    ),
    "huge counts": formed({"type": "array", "items": {"type": "integer"}, "minItems": 10**9}),
    "an endless expression": guided(regex="(((a{1,1000}){1,1000}){1,1000}){1,1000}"),
    "a broken expression": guided(regex="(((("),
    "a wide expression": guided(regex="|".join("a" * i + "?" for i in range(300))),
    "a broken grammar": guided(grammar="start: start start | foo"),
    "a grammar of itself": guided(grammar="start: start"),
    "no choice": guided(choice=[]),
    "choices without end": guided(choice=["x" * 1000] * 1000),
    "a file to read": changed(messages=[{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]),
    "an image that is none": changed(messages=[{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]),
    "a thousand tools": changed(tools=[{"type": "function", "function": {"name": f"f{i}"}} for i in range(1000)]),
    "a tool nobody knows": changed(tools=[], tool_choice={"type": "function", "function": {"name": "rm"}}),
}  # fmt: skip


ACCEPTED = {
    "deep unknown field", "a template", "template options that loop", "a wild temperature", "a huge seed",
    "a schema that calls itself", "a schema that explodes", "a schema of choices of choices", "huge counts",
    "a wide expression", "an endless expression", "a thousand tools", "choices without end",
}  # fmt: skip
"""Odd, but they may be answered, as long as that does not take long."""


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_body_is_refused_with_a_reason(served: Served, what: str) -> None:
    started = time.monotonic()
    answer = served.call("/v1/chat/completions", BROKEN[what])
    assert answer.status == 400 or (what in ACCEPTED and answer.status in (200, 504)), answer.content[:500]
    if answer.status == 400:
        assert answer.json["error"]["message"]
        assert len(answer.content) < 2000, "what was sent is not sent back whole"
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("path", POSTS)
def test_every_route_refuses_what_is_no_request(served: Served, path: str) -> None:
    for body in (b"", b"null", b"[1]", b"{}", b'{"model": {}}', b"\x00", b'{"model": "chat"', b'"\xf0"', b"[" * 9999):
        answer = served.call(path, body)
        assert 400 <= answer.status < 500 or (path == "/tokenizer_info" and body == b"{}"), (body, answer.content)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_FIELDS = (
    "messages", "prompt", "input", "n", "stop", "tools", "tool_choice", "response_format", "logit_bias", "stream",
    "text", "query", "documents", "temperature", "seed", "echo", "logprobs", "timeout", "stream_options", "tokens",
    "structured_outputs", "chat_template_kwargs", "stop_token_ids", "texts", "num_beams", "suffix", "cache_salt",
)  # fmt: skip


@settings(max_examples=150)
@given(
    path=st.sampled_from(POSTS[:12]), fields=st.dictionaries(st.sampled_from(_FIELDS), _JSON, min_size=1, max_size=4)
)
def test_random_values_of_known_fields_never_break_it(served: Served, path: str, fields: dict[str, Any]) -> None:
    body = json.dumps({"max_tokens": 2, **fields}).encode()
    assert served.call(path, body).status in (200, 400, 404, 504)


def test_duplicate_keys_and_unknown_fields_are_no_matter(served: Served) -> None:
    twice = GOOD.replace(b'"max_tokens": 2', b'"max_tokens": 1, "max_tokens": 2, "whatever": [1]')
    assert served.call("/v1/chat/completions", twice).json["usage"]["completion_tokens"] <= 2


def raw(served: Served, data: bytes, *, is_half_closed: bool = False, wait_s: float = 20) -> bytes:
    """What comes back for bytes of our own, until the other side ends it."""
    with socket.create_connection((served.host, int(served.port)), timeout=wait_s) as sock:
        try:
            sock.sendall(data)
            if is_half_closed:
                sock.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            return b"cut off"
        found = b""
        try:
            while piece := sock.recv(65536):
                found += piece
        except ConnectionResetError:
            return found or b"cut off"
    return found


def head(*lines: str, length: int | None = len(GOOD), last: str = "close") -> bytes:
    sized = [] if length is None else [f"Content-Length: {length}"]
    first = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*first, *sized, *lines, f"Connection: {last}", "", ""]).encode()


def test_headers_without_end_are_cut_off(served: Served) -> None:
    many = head(*(f"X-{i}: {i}" for i in range(100_000)))
    assert raw(served, many).startswith((b"HTTP/1.1 431", b"cut off"))
    assert raw(served, head("X: " + "x" * 10**6)).startswith((b"HTTP/1.1 431", b"cut off"))
    assert raw(served, b"GET /" + b"a" * 10**6).startswith((b"HTTP/1.1 4", b"cut off"))


def test_what_is_not_http_is_told_so(served: Served) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 100,
        b"HELO x\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ):
        found = raw(served, data, is_half_closed=True)
        assert found in (b"", b"cut off") or found.startswith(b"HTTP/1.1 4"), (data, found)


def test_a_client_that_closes_its_half_still_hears_or_is_let_go(served: Served) -> None:
    whole = raw(served, head() + GOOD, is_half_closed=True)
    assert whole == b"" or whole.startswith(b"HTTP/1.1 200"), whole
    assert raw(served, head()[:60], is_half_closed=True) in (b"", b"cut off")


def test_requests_in_a_row_on_one_connection_are_answered_in_order(served: Served) -> None:
    found = raw(
        served,
        (head(last="keep-alive") + GOOD) * 3 + b"GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    )
    assert found.count(b"HTTP/1.1 200") == 4
    assert b'"version"' in found.rpartition(b"HTTP/1.1 200")[2]


def test_bodies_in_chunks_are_read_and_bounded(served: Served) -> None:
    chunked = head("Transfer-Encoding: chunked", length=None)
    pieces = b"".join(b"1\r\n" + GOOD[i : i + 1] + b"\r\n" for i in range(len(GOOD)))
    assert raw(served, chunked + pieces + b"0\r\n\r\n").startswith(b"HTTP/1.1 200")
    endless = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    assert raw(served, chunked + endless * 100).startswith((b"HTTP/1.1 413", b"cut off"))
    assert raw(served, chunked + b"zz\r\n").startswith((b"HTTP/1.1 400", b"cut off"))
    assert raw(served, head("Transfer-Encoding: chunked") + b"0\r\n\r\n").startswith(b"HTTP/1.1 400"), "smuggling"


def test_a_body_larger_than_allowed_is_refused_before_it_is_read(served: Served) -> None:
    assert raw(served, head(length=10**12)).startswith(b"HTTP/1.1 413")
    assert raw(served, head(length=None) + b"").startswith(b"HTTP/1.1 400")
    assert raw(served, head("Content-Length: -5", length=None)).startswith((b"HTTP/1.1 4", b"cut off"))


def test_other_sites_and_other_names_of_this_machine_are_turned_away(served: Served) -> None:
    assert served.call("/v1/models", headers={"Origin": "https://evil.example"}).status == 403
    assert raw(served, b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").startswith(
        b"HTTP/1.1 403"
    )
    assert served.call("/../../etc/passwd").status == 404
    assert served.call("/v1/models/..%2f..%2fetc").status == 404
    assert served.call("/health", method="DELETE").status == 405


def test_slow_clients_hold_up_nobody(served: Served) -> None:
    slow = [socket.create_connection((served.host, int(served.port))) for _ in range(50)]
    for sock in slow:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: local")
    started = time.monotonic()
    assert served.call("/v1/chat/completions", GOOD).status == 200
    assert time.monotonic() - started < 10
    for sock in slow:
        sock.close()
