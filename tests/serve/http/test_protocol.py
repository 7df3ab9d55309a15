"""Requests: what is accepted, and how a mistake in one is named."""

import json
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "say hello"}]}
TEXT = {"model": "fake", "prompt": "say hello"}
TOOL = {"type": "function", "function": {"name": "f"}}


MISTAKES = [
    (b"", None, "The body is not JSON"),
    (b"{", None, "The body is not JSON"),
    (b"[]", None, "The body: expected `object`, got `array`"),
    (b'{"model": "\xff"}', None, "The body is not UTF-8 (byte 0xff at position 11)"),
    (b'{"x":' + b"[" * 20_000 + b"]" * 20_000 + b"}", None, "nested too deeply"),
    ({}, "messages", "messages is missing"),
    ({"model": "fake"}, "messages", "messages is missing"),
    ({**CHAT, "messages": []}, "messages", "length >= 1"),
    ({**CHAT, "messages": [{"role": "user"}]}, "messages[0].content", "has no content"),
    ({**CHAT, "messages": [{"role": "pope", "content": "x"}]}, "messages[0].role", "invalid enum value 'pope'"),
    ({**CHAT, "messages": [{"role": "user", "content": 5}]}, "messages[0].content", "got `int`"),
    (
        {**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0]",
        "is an image, and 'fake' reads text alone",
    ),
    ({**CHAT, "messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]", "has no text"),
    (
        {**CHAT, "messages": [{"role": "user", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
        "messages[0].tool_calls",
        "Only an assistant calls tools",
    ),
    ({**CHAT, "messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0]", "'video'"),
    ({**CHAT, "max_tokens": "many"}, "max_tokens", "expected `int | null`, got `str`"),
    ({**CHAT, "max_tokens": 0}, "max_tokens", "max_tokens is 0"),
    ({**CHAT, "temperature": 2.5}, "temperature", "temperature is 2.5"),
    ({**CHAT, "top_p": 0}, "top_p", "top_p is 0.0"),
    ({**CHAT, "top_k": -2}, "top_k", "top_k is -2"),
    ({**CHAT, "stop": ["a"] * 17}, "stop", "stop has 17 texts"),
    ({**CHAT, "stop": [1]}, "stop[0]", "got `int`"),
    ({**CHAT, "seed": 2**70}, "seed", "<= 9223372036854775807"),
    ({**CHAT, "n": 129}, "n", "n is 129"),
    ({**CHAT, "n": 0}, "n", "n is 0"),
    ({**CHAT, "stream": "yes"}, "stream", "got `str`"),
    ({**CHAT, "top_logprobs": 2}, "top_logprobs", "top_logprobs is 2 without logprobs"),
    ({**CHAT, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "<= 20"),
    ({**CHAT, "audio": {"voice": "x"}}, "audio", 'audio is not served, and {"voice": "x"} would change the answer'),
    ({**CHAT, "presence_penalty": 2.5}, "presence_penalty", "presence_penalty is 2.5"),
    ({**CHAT, "logit_bias": {"x": 1}}, "logit_bias", "expected `int`"),
    ({**CHAT, "logit_bias": {"5": 101}}, "logit_bias", "logit_bias of token 5 is 101"),
    ({**CHAT, "min_tokens": 9, "max_tokens": 5}, "min_tokens", "more than max_tokens"),
    ({**CHAT, "timeout": 0}, "timeout", ">= 0.001"),
    ({**CHAT, "num_beams": 4, "temperature": 1.0}, "num_beams", "both given"),
    ({**CHAT, "tools": [{"type": "function"}]}, "tools[0].function", "is missing"),
    ({**CHAT, "tools": [{"function": {"name": "a b"}}]}, "tools[0].function.name", "matching regex"),
    ({**CHAT, "tools": [TOOL, TOOL]}, "tools[1].function.name", "Two tools have the name 'f'"),
    ({**CHAT, "tools": [TOOL] * 129}, "tools", "length <= 128"),
    ({**CHAT, "tool_choice": "required"}, "tools", "there are no tools"),
    ({**CHAT, "tools": [TOOL], "tool_choice": {"function": {"name": "g"}}}, "tool_choice", "names 'g'"),
    (
        {**CHAT, "tools": [{"function": {"name": "f", "description": "d" * 70_000}}]},
        "tools",
        "tools is larger than 65,536 bytes",
    ),
    (
        {**CHAT, "tools": [TOOL], "structured_outputs": {"grammar": 'start: "a"'}},
        "tools",
        "A grammar and tools are both given. Leave one out",
    ),
    ({**CHAT, "priority": 1001}, "priority", "<= 1000"),
    ({**CHAT, "priority": -1001}, "priority", ">= -1000"),
    ({**CHAT, "response_format": {"type": "yaml"}}, "response_format.type", "invalid enum value"),
    ({**CHAT, "response_format": {"type": "json_schema"}}, "response_format.json_schema", "schema is missing"),
    ({**CHAT, "guided_json": "5"}, "guided_json", "Send a JSON schema: an object"),
    ({**CHAT, "guided_regex": "a", "guided_choice": ["b"]}, "guided_regex", "are both given"),
    ({**CHAT, "guided_choice": []}, "guided_choice", "length >= 1"),
    ({**CHAT, "structured_outputs": {"regex": "a" * 70_000}}, "structured_outputs.regex", "larger than 65,536 bytes"),
    ({**CHAT, "chat_template_kwargs": {"template": "x"}}, "chat_template_kwargs", "has 'template'. Known: add_gen"),
    ({**CHAT, "chat_template_kwargs": {"enable_thinking": [1]}}, "chat_template_kwargs", "Use true, false"),
    ({**CHAT, "continue_final_message": True}, "continue_final_message", "the last message is of the user"),
]


def test_text_parts_are_joined_and_developers_count_as_system(running):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    assert running.call("/v1/chat/completions", {**CHAT, "messages": messages})[0] == 200
    assert running.engine.seen[-1].prompt == [
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
        ({"suffix": "end"}, "suffix", 'suffix is not served, and "end" would change the answer'),
        ({"logprobs": 21}, "logprobs", "<= 20"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0"),
        ({"best_of": 2, "n": 3}, "best_of", "best_of is 2, fewer than n, 3"),
        ({"best_of": 3, "stream": True}, "best_of", "best_of is 3 in a stream"),
        ({"prompt": ["a"] * 60, "n": 3}, "n", "180 answers were asked for"),
    ],
)
def test_a_mistake_in_a_completions_request_is_named(running, change, param, text):
    status, error = running.error_of("/v1/completions", {**TEXT, **change})
    assert (status, error["param"]) == (400, param)
    assert text in error["message"]


def test_fields_that_ask_for_nothing_are_accepted(running):
    neutral = {
        "suffix": None,
        "audio": None,
        "store": True,
        "metadata": {"a": "b"},
        "logprobs": False,
        "tools": [],
        "frequency_penalty": 0,
        "response_format": {"type": "text"},
        "n": 1,
    }
    silent = {"temperature": None, "stop": None, "seed": None, "max_tokens": None, "user": "me"}
    assert running.call("/v1/chat/completions", {**CHAT, **neutral, **silent})[0] == 200


def test_an_unknown_field_is_accepted_and_warned_of_once(running, caplog):
    with caplog.at_level(logging.WARNING, logger="danlu.serve.http.protocol.parse"):
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
asked = (
    "model messages prompt max_tokens temperature top_p top_k stop seed n stream stream_options logprobs user tools "
    "tool_choice response_format logit_bias guided_json best_of echo priority timeout chat_template_kwargs"
)
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
