"""Completions: echo, integer log-probabilities, scoring, best_of; as lm-evaluation-harness reads them."""

import json

import pytest

TEXT = {"model": "fake", "prompt": "one two three"}


def answer_of(running, **fields):
    status, _, content = running.call("/v1/completions", {**TEXT, **fields})
    assert status == 200
    return json.loads(content)


def test_the_prompt_is_echoed_with_its_log_probabilities(running):
    running.engine.pieces = (" four", "!")
    answer = answer_of(running, prompt="onetwothree", echo=True, logprobs=1, max_tokens=1)
    [choice] = answer["choices"]
    assert choice["text"] == "onetwothree four"
    assert choice["logprobs"] == {
        "tokens": ["onetwothree", " four"],
        "token_logprobs": [None, -0.5],
        "top_logprobs": [None, {" four": -0.5}],
        "text_offset": [0, 11],
    }


def test_a_prompt_is_scored_without_writing(running):
    running.engine.pieces = ("x",)
    answer = answer_of(running, echo=True, logprobs=1, max_tokens=0)
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("one two three", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -2.0]
    assert [max(top, key=top.get) for top in choice["logprobs"]["top_logprobs"][1:]] == ["two", "three"]
    assert answer["usage"]["completion_tokens"] == 0
    assert running.engine.seen[-1].options.max_tokens == 1


def test_token_ids_are_echoed_as_text(running):
    answer = answer_of(running, prompt=[[0, 1], [2]], echo=True)
    assert [choice["text"] for choice in answer["choices"]] == ["abHello, wörld 丹炉", "cHello, wörld 丹炉"]


def test_a_stream_begins_with_the_echo_and_joins_to_the_whole(running):
    fields = {**TEXT, "echo": True, "logprobs": 0, "n": 2}
    whole = answer_of(running, **fields)
    texts, offsets = ["", ""], [[], []]
    for block in running.events_of({**fields, "stream": True}, "/v1/completions")[:-1]:
        [choice] = json.loads(block.removeprefix("data: "))["choices"]
        texts[choice["index"]] += choice["text"]
        offsets[choice["index"]] += (choice["logprobs"] or {"text_offset": []})["text_offset"]
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert offsets == [choice["logprobs"]["text_offset"] for choice in whole["choices"]]


def test_log_probabilities_without_likeliest_tokens_have_none(running):
    assert answer_of(running, logprobs=0)["choices"][0]["logprobs"]["top_logprobs"] is None
    assert answer_of(running)["choices"][0]["logprobs"] is None


def test_the_best_of_several_go_back(running):
    answer = answer_of(running, best_of=4, n=2)
    assert len(answer["choices"]) == 2
    assert (running.engine.seen[-1].options.n, running.engine.seen[-1].options.logprobs) == (4, 0)
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["choices"][0]["logprobs"] is None


def test_prompt_log_probabilities_have_a_field_of_their_own(running):
    [choice] = answer_of(running, prompt_logprobs=1)["choices"]
    assert choice["prompt_logprobs"] == [None, {"two": -1.0}, {"three": -2.0}]


def test_ids_of_the_tokens_go_back_where_they_are_asked_for(running):
    assert answer_of(running, return_token_ids=True)["choices"][0]["token_ids"] == [0, 1, 2]
    assert "token_ids" not in answer_of(running)["choices"][0]
    for path, body in (
        ("/v1/completions", TEXT),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ):
        asked = {**body, "return_token_ids": True}
        whole = json.loads(running.call(path, asked)[2])["choices"][0]["token_ids"]
        blocks = running.events_of({**asked, "stream": True}, path)[:-1]
        choices = [json.loads(block.removeprefix("data: "))["choices"][0] for block in blocks]
        assert [i for choice in choices for i in choice.get("token_ids", ())] == whole == [0, 1, 2]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_answers_to_several_prompts_are_numbered_in_order(running, is_streamed):
    fields = {**TEXT, "prompt": ["a", "b"], "n": 2}
    if is_streamed:
        blocks = running.events_of({**fields, "stream": True}, "/v1/completions")[:-1]
        found = {json.loads(block.removeprefix("data: "))["choices"][0]["index"] for block in blocks}
    else:
        found = {choice["index"] for choice in answer_of(running, **fields)["choices"]}
    assert found == {0, 1, 2, 3}
