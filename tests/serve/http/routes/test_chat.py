"""Chat completions as clients see them: tools, thoughts, log-probabilities, structured outputs, several answers."""

import asyncio
import json
from dataclasses import replace

import openai
import pydantic
import pytest

ASK = [{"role": "user", "content": "say hello"}]
CHAT = {"model": "fake", "messages": ASK}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = ("I look", " it up.\n<tool", '_call>\n{"name": "weather", "arg', 'uments": {"city": ', '"Bern"}}\n</tool_call>')
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)


@pytest.fixture
def client(running):
    with openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_call_is_parsed_out_of_the_answer(running, client):
    running.engine.pieces = CALL
    answer = client.chat.completions.create(model="fake", messages=ASK, tools=[WEATHER])
    [choice] = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("I look it up.", "tool_calls")
    [call] = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Bern"})
    request = running.engine.seen[-1]
    assert [dict(tool) for tool in request.tools] == [WEATHER]
    assert (request.grammar.kind, request.grammar.after) == ("lark", "<tool_call>")


def test_a_streamed_call_has_its_name_once_and_its_arguments_in_pieces(running, client):
    running.engine.pieces = CALL
    chunks = list(client.chat.completions.create(model="fake", messages=ASK, tools=[WEATHER], stream=True))
    parts = [call for c in chunks for call in c.choices[0].delta.tool_calls or ()]
    assert [part.function.name for part in parts if part.function.name] == ["weather"]
    assert [part.id is not None for part in parts] == [True, *[False] * (len(parts) - 1)]
    assert {part.index for part in parts} == {0}
    assert json.loads("".join(part.function.arguments or "" for part in parts)) == {"city": "Bern"}
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "I look it up."
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_clients_own_stream_helper_parses_parallel_calls(running, client):
    strict = {**WEATHER["function"], "strict": True}
    running.engine.pieces = (
        *CALL,
        '\n<tool_call>\n{"name": "weather", "arguments": {"city":',
        ' "Rom"}}\n</tool_call>',
    )
    tools = [{"type": "function", "function": strict}]
    with client.chat.completions.stream(model="fake", messages=ASK, tools=tools) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert [call.function.parsed_arguments for call in calls] == [{"city": "Bern"}, {"city": "Rom"}]
    assert len({call.id for call in calls}) == 2


@pytest.mark.parametrize(
    ("choice", "after"), [("required", ""), ({"type": "function", "function": {"name": "weather"}}, "")]
)
def test_a_call_that_must_be_made_has_its_grammar_from_the_start(running, client, choice, after):
    client.chat.completions.create(model="fake", messages=ASK, tools=[WEATHER], tool_choice=choice)
    assert running.engine.seen[-1].grammar.after == after


def test_without_a_choice_of_tools_none_are_told(running, client):
    running.engine.pieces = CALL
    answer = client.chat.completions.create(model="fake", messages=ASK, tools=[WEATHER], tool_choice="none")
    assert answer.choices[0].message.tool_calls is None
    assert (running.engine.seen[-1].tools, running.engine.seen[-1].grammar) == ((), None)


def test_calls_and_their_results_go_back_to_the_model(running, client):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
    turns = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    client.chat.completions.create(model="fake", messages=turns, tools=[WEATHER])
    assert running.engine.seen[-1].prompt == [
        ASK[0],
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "call_1"},
    ]


def test_thoughts_come_apart_from_what_is_said(running, client):
    running.engine.served = [replace(running.engine.served[0], thinks="may")]
    running.engine.pieces = ("<think>one", " two</thi", "nk>\n\nthree")
    message = client.chat.completions.create(model="fake", messages=ASK).choices[0].message
    assert (message.content, message.reasoning_content) == ("three", "one two")
    deltas = [c.choices[0].delta for c in client.chat.completions.create(model="fake", messages=ASK, stream=True)]
    assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == "one two"
    assert "".join(d.content or "" for d in deltas) == "three"


def test_a_form_holds_only_after_thoughts_that_have_begun(running):
    running.engine.served = [replace(running.engine.served[0], thinks="at_once")]
    running.call("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_object"}})
    assert running.engine.seen[-1].grammar.after == "</think>"
    running.call("/v1/chat/completions", {**CHAT, "tools": [WEATHER]})
    assert running.engine.seen[-1].grammar.after == "<tool_call>"


def test_several_answers_come_whole_and_in_pieces(running, client):
    answer = client.chat.completions.create(model="fake", messages=ASK, n=3)
    assert [(c.index, c.message.content) for c in answer.choices] == [(i, "Hello, wörld 丹炉") for i in range(3)]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 9)
    assert answer.usage.prompt_tokens_details.cached_tokens == 1
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(model="fake", messages=ASK, n=3, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["Hello, wörld 丹炉"] * 3


def test_log_probabilities_name_each_token_with_its_bytes(running, client):
    running.engine.pieces = ("Hi", " 丹")
    answer = client.chat.completions.create(model="fake", messages=ASK, logprobs=True, top_logprobs=1)
    first, second = answer.choices[0].logprobs.content
    assert (first.token, first.logprob, first.bytes) == ("Hi", -0.5, [72, 105])
    assert (second.token, second.bytes) == (" 丹", [32, 228, 184, 185])
    assert [(top.token, top.logprob) for top in second.top_logprobs] == [(" 丹", -0.5)]
    chunks = client.chat.completions.create(model="fake", messages=ASK, logprobs=True, stream=True)
    told = [token.token for c in chunks if c.choices[0].logprobs for token in c.choices[0].logprobs.content]
    assert told == ["Hi", " 丹"]


class City(pydantic.BaseModel):
    name: str
    people: int


def test_a_parsed_answer_has_its_schema_as_grammar(running, client):
    running.engine.pieces = ('{"name": "Bern",', ' "people": 5}')
    answer = client.chat.completions.parse(model="fake", messages=ASK, response_format=City)
    assert answer.choices[0].message.parsed == City(name="Bern", people=5)
    grammar = running.engine.seen[-1].grammar
    assert grammar.kind == "json_schema"
    assert set(json.loads(grammar.text)["properties"]) == {"name", "people"}


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", ""),
        ({"structured_outputs": {"json": {"type": "object"}}}, "json_schema", '{"type":"object"}'),
        ({"guided_json": '{"type": "object"}'}, "json_schema", '{"type": "object"}'),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["a", "b"]}, "choice", '["a","b"]'),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, "lark", 'start: "a"'),
        ({"structured_outputs": {"json_object": True}}, "json_object", ""),
    ],
)
def test_every_way_to_shape_an_answer_becomes_one_grammar(running, fields, kind, text):
    assert running.call("/v1/chat/completions", {**CHAT, **fields})[0] == 200
    grammar = running.engine.seen[-1].grammar
    assert (grammar.kind, grammar.text) == (kind, text)


def test_with_tools_and_a_form_the_answer_is_a_call_or_text_in_the_form(running, client):
    shaped = {"response_format": City, "tools": [{**WEATHER, "function": {**WEATHER["function"], "strict": True}}]}
    for pieces in ('{"name": "Bern", "people": 5}',), ("<tool", *CALL[2:]):
        running.engine.pieces = pieces
        message = client.chat.completions.parse(model="fake", messages=ASK, **shaped).choices[0].message
        grammar = running.engine.seen[-1].grammar
        assert (grammar.kind, grammar.after) == ("json_schema", "")
        assert "start:" in grammar.calls
        assert (message.parsed is None) == bool(message.tool_calls)
    running.call("/v1/chat/completions", {**CHAT, "tools": [WEATHER], "tool_choice": "required",
                                          "response_format": {"type": "json_object"}})  # fmt: skip
    grammar = running.engine.seen[-1].grammar
    assert (grammar.kind, grammar.after, grammar.calls) == ("lark", "", "")
    assert "weather" in grammar.text


def test_every_option_reaches_the_engine(running):
    fields = {
        "min_tokens": 2, "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "n": 2,
        "repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": -0.5, "no_repeat_ngram_size": 3,
        "stop_token_ids": [4], "ignore_eos": True, "seed": 8,
    }  # fmt: skip
    extras = {"logit_bias": {"7": -1}, "stop": ["a", "b"], "cache_salt": "x", "priority": -3, "timeout": 2.5,
              "chat_template_kwargs": {"enable_thinking": False}}  # fmt: skip
    assert running.call("/v1/chat/completions", {**CHAT, **fields, **extras})[0] == 200
    request = running.engine.seen[-1]
    assert {name: getattr(request.options, name) for name in fields} == {**fields, "stop_token_ids": (4,)}
    assert (request.options.logit_bias, request.options.stop) == ({7: -1.0}, ("a", "b"))
    assert (request.caller.priority, request.caller.timeout_s, request.caller.tenant) == (-3, 2.5, "")
    assert (request.cache_salt, request.template_options) == ("x", {"enable_thinking": False})


def test_beams_are_greedy_unless_a_temperature_is_given(running):
    running.call("/v1/chat/completions", {**CHAT, "num_beams": 4, "length_penalty": 0.5, "early_stopping": "never"})
    options = running.engine.seen[-1].options
    assert (options.num_beams, options.temperature, options.length_penalty) == (4, 0.0, 0.5)


def test_a_final_message_is_continued(running):
    turns = [*ASK, {"role": "assistant", "content": "Hel"}]
    assert running.call("/v1/chat/completions", {"messages": turns, "continue_final_message": True})[0] == 200
    assert running.engine.seen[-1].template_options == {"continue_final_message": True, "add_generation_prompt": False}


def test_images_go_on_to_models_that_take_them_and_nothing_is_fetched(running):
    def ask(url):
        parts = [{"type": "text", "text": "what\ufffc?"}, {"type": "image_url", "image_url": {"url": url}}]
        return {**CHAT, "messages": [{"role": "user", "content": parts}]}

    assert "reads text alone" in running.error_of("/v1/chat/completions", ask(PIXEL))[1]["message"]
    running.engine.served = [replace(running.engine.served[0], takes_images=True)]
    assert running.call("/v1/chat/completions", ask(PIXEL))[0] == 200
    request = running.engine.seen[-1]
    assert request.prompt[0]["content"] == "what?\n\ufffc"
    assert request.images[0].startswith(b"\x89PNG")
    for url, text in (
        ("http://127.0.0.1/x.png", "Nothing is fetched for a client"),
        ("file:///etc/passwd", "Nothing is fetched"),
        ("data:image/png,abc", "is not base64"),
        ("data:image/png;base64,!!", "is not base64"),
        ("data:image/svg+xml;base64,PHN2Zz4=", "neither PNG, JPEG nor WebP"),
    ):
        status, error = running.error_of("/v1/chat/completions", ask(url))
        assert (status, error["param"]) == (400, "messages[0].content[1].image_url")
        assert text in error["message"]


def test_the_model_may_be_left_out_when_there_is_one_that_can(running):
    assert running.call("/v1/chat/completions", {"messages": ASK})[0] == 200
    first = running.engine.served[0]
    running.engine.served = [first, replace(first, name="reader", abilities=frozenset({"embed"}))]
    assert running.call("/v1/chat/completions", {"messages": ASK})[0] == 200
    status, error = running.error_of("/v1/chat/completions", {"messages": ASK, "model": "reader"})
    assert (status, error["code"]) == (400, "unsupported_model")
    assert error["message"] == "The model 'reader' cannot write text; it can embed. Ask one of: fake."
    running.engine.served = [first, replace(first, name="other")]
    status, error = running.error_of("/v1/chat/completions", {"messages": ASK})
    assert (status, error["message"]) == (400, "model is missing. Name one of those served: fake, other.")


def test_an_async_client_streams(running):
    async def read():
        async with openai.AsyncOpenAI(base_url=running.url + "/v1", api_key="none") as client:
            stream = await client.chat.completions.create(model="fake", messages=ASK, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(read()) == "Hello, wörld 丹炉"
