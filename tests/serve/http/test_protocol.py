"""Requests: what is accepted, and how a mistake in one is named."""

import json
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "say hello"}]}
TEXT = {"model": "fake", "prompt": "say hello"}


MISTAKES = [
    (b"", None, "The body is not JSON"),
    (b"{", None, "The body is not JSON"),
    (b"[]", None, "The body: expected `object`, got `array`"),
    (b'{"model": "\xff"}', None, "The body is not UTF-8 (byte 0xff at position 11)"),
    (b'{"x":' + b"[" * 20_000 + b"]" * 20_000 + b"}", None, "nested too deeply"),
    ({}, "model", "model is missing"),
    ({"model": "fake"}, "messages", "messages is missing"),
    ({**CHAT, "messages": []}, "messages", "length >= 1"),
    ({**CHAT, "messages": [{"role": "user"}]}, "messages[0].content", "has no content"),
    ({**CHAT, "messages": [{"role": "pope", "content": "x"}]}, "messages[0].role", "invalid enum value 'pope'"),
    ({**CHAT, "messages": [{"role": "user", "content": 5}]}, "messages[0].content", "got `int`"),
    (
        {**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0]",
        "Only text",
    ),
    ({**CHAT, "messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]", "has no text"),
    ({**CHAT, "messages": [{"role": "user", "tool_calls": [1]}]}, "messages[0].tool_calls", "has tool_calls"),
    ({**CHAT, "max_tokens": "many"}, "max_tokens", "expected `int | null`, got `str`"),
    ({**CHAT, "max_tokens": 0}, "max_tokens", "max_tokens is 0"),
    ({**CHAT, "temperature": 2.5}, "temperature", "temperature is 2.5"),
    ({**CHAT, "top_p": 0}, "top_p", "top_p is 0.0"),
    ({**CHAT, "top_k": -1}, "top_k", "top_k is -1"),
    ({**CHAT, "stop": ["a"] * 5}, "stop", "stop has 5 texts"),
    ({**CHAT, "stop": [1]}, "stop[0]", "got `int`"),
    ({**CHAT, "seed": 2**70}, "seed", "<= 9223372036854775807"),
    ({**CHAT, "n": 2}, "n", "n is 2"),
    ({**CHAT, "stream": "yes"}, "stream", "got `str`"),
    ({**CHAT, "logprobs": True}, "logprobs", "logprobs is not served yet, and true would change"),
    ({**CHAT, "tools": [{"type": "function"}]}, "tools", "tools is not served yet"),
    ({**CHAT, "response_format": {"type": "json_object"}}, "response_format", "not served yet"),
    ({**CHAT, "presence_penalty": 0.5}, "presence_penalty", "not served yet"),
]


def test_text_parts_are_joined_and_developers_count_as_system(running):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    assert running.call("/v1/chat/completions", {**CHAT, "messages": messages})[0] == 200
    assert running.engine.seen[-1][0] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one\ntwo"},
    ]


@pytest.mark.parametrize(("body", "param", "text"), MISTAKES)
def test_a_mistake_in_a_chat_request_is_named(running, body, param, text):
    status, error = running.error_of("/v1/chat/completions", body)
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert text in error["message"]
    assert not running.engine.tickets


@pytest.mark.parametrize(
    ("change", "param", "text"),
    [
        ({"prompt": None}, "prompt", "got `null`"),
        ({"prompt": []}, "prompt", "length >= 1"),
        ({"prompt": [1, "a"]}, "prompt", "mixes texts and token ids"),
        ({"prompt": [-1]}, "prompt[0]", ">= 0"),
        ({"prompt": ["a"] * 65}, "prompt", "65 prompts. Send at most 64"),
        ({"prompt": " "}, "prompt", "The prompt is empty"),
        ({"echo": True}, "echo", "echo is not served yet"),
        ({"logprobs": 0}, "logprobs", "logprobs is not served yet"),
        ({"best_of": 3}, "best_of", "best_of is not served yet"),
    ],
)
def test_a_mistake_in_a_completions_request_is_named(running, change, param, text):
    status, error = running.error_of("/v1/completions", {**TEXT, **change})
    assert (status, error["param"]) == (400, param)
    assert text in error["message"]


def test_fields_that_ask_for_nothing_are_accepted(running):
    neutral = {"logprobs": False, "tools": [], "frequency_penalty": 0, "response_format": {"type": "text"}, "n": 1}
    silent = {"temperature": None, "stop": None, "seed": None, "max_tokens": None, "user": "me"}
    assert running.call("/v1/chat/completions", {**CHAT, **neutral, **silent})[0] == 200


def test_an_unknown_field_is_accepted_and_warned_of_once(running, caplog):
    with caplog.at_level(logging.WARNING, logger="danlu.serve.http.protocol"):
        for _ in range(2):
            assert running.call("/v1/chat/completions", {**CHAT, "grandeur": 1})[0] == 200
    assert [record.getMessage() for record in caplog.records] == [
        "A request has the unknown field 'grandeur'; it is ignored."
    ]


fuzz = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
starts = st.sampled_from([b"", b"{", b'{"model":"fake","prompt":"', json.dumps(TEXT).encode()])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
asked = "model messages prompt max_tokens temperature top_p top_k stop seed n stream stream_options logprobs user"
fields = st.sampled_from(asked.split(" "))


@fuzz
@given(
    path=st.sampled_from(["chat/completions", "completions"]), changes=st.dictionaries(fields, json_values, max_size=3)
)
def test_any_json_gets_an_answer_or_an_error_object(running, path, changes):
    body = {**(CHAT if path.startswith("chat") else TEXT), "max_tokens": 1, **changes}
    status, _, content = running.call(f"/v1/{path}", json.dumps(body).encode())
    assert status in (200, 400, 404)
    if status != 200:
        assert json.loads(content)["error"]["message"]


@fuzz
@given(
    start=st.sampled_from([b"", b"{", b'{"model":"fake","prompt":"', json.dumps(TEXT).encode()]),
    rest=st.binary(max_size=60),
)
def test_any_bytes_get_an_answer_or_an_error_object(running, start, rest):
    status, _, content = running.call("/v1/completions", start + rest)
    assert status in (200, 400, 404)
    if status != 200:
        assert json.loads(content)["error"]["message"]


def test_a_huge_field_is_refused_without_harm(running):
    for body in ({**CHAT, "model": "m" * 90_000}, {**CHAT, "stop": ["s" * 90_000]}, {**CHAT, "f" * 90_000: 1}):
        assert running.call("/v1/chat/completions", body)[0] in (200, 400, 404)
    assert len(running.error_of("/v1/chat/completions", {**CHAT, "model": "m" * 90_000})[1]["message"]) < 300
    body = b'{"model": "fake", "prompt": "x", "seed": ' + b"9" * 50_000 + b"}"
    assert running.error_of("/v1/completions", body)[0] == 400
