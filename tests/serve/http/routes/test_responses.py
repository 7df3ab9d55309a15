"""The Responses API: items, events, what is kept and for whom."""

import hashlib
import json
import threading
import urllib.request
from dataclasses import replace

import openai
import pydantic
import pytest

from danlu.core.errors import ModelError
from tests.serve.http.routes.test_chat import CALL

TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}, "strict": True}


@pytest.fixture
def client(running):
    with openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_text_is_answered(running, client):
    answer = client.responses.create(model="fake", input="say hello", instructions="be kind", max_output_tokens=9)
    assert (answer.output_text, answer.status, answer.object) == ("Hello, wörld 丹炉", "completed", "response")
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (4, 3, 7)
    assert answer.usage.input_tokens_details.cached_tokens == 2
    assert running.engine.seen[-1].prompt == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "say hello"},
    ]
    assert running.engine.seen[-1].options.max_tokens == 9


def test_an_answer_that_is_cut_is_incomplete(client):
    answer = client.responses.create(model="fake", input="x", max_output_tokens=1)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_events_come_in_order_and_join_to_the_answer(client):
    events = list(client.responses.create(model="fake", input="x", stream=True))
    assert [event.type for event in events] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        *["response.output_text.delta"] * 3, "response.output_text.done", "response.content_part.done",
        "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "Hello, wörld 丹炉"
    assert events[-1].response.output_text == "Hello, wörld 丹炉"
    assert events[-1].response.usage.total_tokens == 4
    assert events[0].response.status == "in_progress"


def test_the_clients_own_stream_helper_follows_calls(running, client):
    running.engine.pieces = CALL
    with client.responses.stream(model="fake", input="x", tools=[TOOL]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    said, call = final.output
    assert said.content[0].text == "I look it up."
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "Bern"})
    assert kinds.count("response.function_call_arguments.done") == 1
    assert kinds.count("response.output_item.done") == 2


def test_calls_and_results_go_back_as_messages(running, client):
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "rain?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "yes"},
    ]
    client.responses.create(model="fake", input=items, tools=[TOOL])
    assert running.engine.seen[-1].prompt == [
        {"role": "user", "content": "rain?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "yes", "tool_call_id": "c1"},
    ]


def test_a_chosen_tool_is_told_in_chat_form(running, client):
    choice = {"type": "function", "name": "weather"}
    client.responses.create(model="fake", input="x", tools=[TOOL], tool_choice=choice)
    assert running.engine.seen[-1].grammar.after == ""
    assert running.engine.seen[-1].tools[0]["function"]["name"] == "weather"


class Size(pydantic.BaseModel):
    width: int


def test_a_parsed_response_has_its_schema_as_grammar(running, client):
    running.engine.pieces = ('{"width":', " 3}")
    answer = client.responses.parse(model="fake", input="x", text_format=Size)
    assert answer.output_parsed == Size(width=3)
    assert json.loads(running.engine.seen[-1].grammar.text)["required"] == ["width"]


def test_thoughts_are_an_item_of_their_own(running, client):
    running.engine.served = [replace(running.engine.served[0], thinks="at_once")]
    running.engine.pieces = ("two plus", " two</think>", "four")
    answer = client.responses.create(model="fake", input="x")
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output[0].content[0].text == "two plus two"
    kinds = [e.type for e in client.responses.create(model="fake", input="x", stream=True)]
    assert "response.reasoning_text.delta" in kinds


def test_a_kept_response_is_continued_read_and_deleted(running, client):
    first = client.responses.create(model="fake", input="one", instructions="only now")
    second = client.responses.create(model="fake", input="two", previous_response_id=first.id)
    assert running.engine.seen[-1].prompt == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "Hello, wörld 丹炉"},
        {"role": "user", "content": "two"},
    ]
    assert second.previous_response_id == first.id
    assert client.responses.retrieve(first.id).output_text == "Hello, wörld 丹炉"
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="There is no response"):
        client.responses.retrieve(first.id)


def test_a_response_that_must_not_be_stored_is_gone(client):
    answer = client.responses.create(model="fake", input="one", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="fake", input="two", previous_response_id=answer.id)


def test_the_oldest_response_goes_first(start):
    running = start(max_stored=2)
    with openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0) as client:
        ids = [client.responses.create(model="fake", input="x").id for _ in range(3)]
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(ids[0])
        assert client.responses.retrieve(ids[2]).id == ids[2]


def test_a_tenant_sees_its_own_responses_alone(start, tmp_path):
    path = tmp_path / "keys"
    path.write_text("".join(f"{name} {hashlib.sha256(name.encode()).hexdigest()}\n" for name in ("ann", "bob")))
    running = start(api_keys_file=path)
    ann, bob = ({"authorization": f"Bearer {name}"} for name in ("ann", "bob"))
    made = json.loads(running.call("/v1/responses", {"input": "x"}, ann)[2])
    assert running.call(f"/v1/responses/{made['id']}", headers=ann)[0] == 200
    assert running.error_of(f"/v1/responses/{made['id']}", headers=bob)[0] == 404


def test_a_response_is_cancelled_while_it_is_written(running, eventually):
    running.engine.pieces, running.engine.delay_s = ("Hello",) * 1000, 0.01
    body = json.dumps({"input": "x", "stream": True, "max_output_tokens": 60}).encode()
    request = urllib.request.Request(running.url + "/v1/responses", body)
    texts = []
    with urllib.request.urlopen(request, timeout=10) as response:
        response.readline()
        created = json.loads(response.readline().removeprefix(b"data: "))["response"]
        reading = threading.Thread(target=lambda: texts.append(response.read().decode()))
        reading.start()
        status, _, content = running.call(f"/v1/responses/{created['id']}/cancel", b"", method="POST")
        reading.join(5)
    assert (status, json.loads(content)["status"]) == (200, "cancelled")
    assert running.engine.tickets[0].cancelled.is_set()
    assert '"code":"cancelled"' in texts[0]
    status, error = running.error_of(f"/v1/responses/{created['id']}/cancel", b"", method="POST")
    assert (status, error["code"]) == (409, "response_not_running")


@pytest.mark.parametrize(
    ("body", "param", "text"),
    [
        ({}, "input", "input is missing"),
        ({"input": []}, "input", "length >= 1"),
        ({"input": [{"content": "x"}]}, "input[0].role", "is missing"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "item_reference"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id", "is missing"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output", "is missing"),
        ({"input": "x", "background": True}, "background", "background is not served"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0]", "Only functions are served"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].name", "is missing"),
    ],
)
def test_a_mistake_is_named(running, body, param, text):
    status, error = running.error_of("/v1/responses", body)
    assert (status, error["param"]) == (400, param)
    assert text in error["message"]


def test_an_unknown_previous_response_is_404(running):
    status, error = running.error_of("/v1/responses", {"input": "x", "previous_response_id": "resp_0"})
    assert (status, error["param"], error["code"]) == (404, "previous_response_id", "response_not_found")


def test_a_broken_stream_ends_with_the_failed_response(running):
    running.engine.pieces, running.engine.delay_s = ("Hello",) * 9, 0.02
    running.engine.error, running.engine.fail_after = ModelError("broke"), 2
    status, _, content = running.call("/v1/responses", {"input": "x", "stream": True})
    *_, last, rest = content.decode().split("\n\n")
    assert (status, rest) == (200, "")
    assert last.startswith("event: response.failed\n")
    assert "broke" not in last
