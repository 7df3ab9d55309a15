"""Every route of a real server, on tiny models: what it answers is what the model says."""

from __future__ import annotations

import base64
import json
import struct
import time
from pathlib import Path
from typing import Any

import openai
import pytest

import danlu
from danlu.core.records import GenerateOptions, Message
from danlu.models.loaded import LoadedModel
from tests.serving import LABELS, Served

HELLO: list[Message] = [{"role": "user", "content": "Say hello"}]
TELLS_S = 1.3
"""The engine tells its numbers once a second."""
TEXTS = ["The cat sat on the mat.", "dogs"]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def models(tiny_models: dict[str, Path]) -> dict[str, LoadedModel]:
    return {name: danlu.load(folder, precision="fp32") for name, folder in tiny_models.items()}  # pyright: ignore


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0)


def good(served: Served, path: str, body: Any) -> Any:
    answer = served.call(path, body)
    assert answer.status == 200, answer.content
    return answer.json


def chat(**changes: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": HELLO, "max_tokens": 16, "temperature": 0, **changes}


def test_chat_says_what_the_model_says_with_logprobs_and_stops(served: Served, models: dict[str, LoadedModel]) -> None:
    (known,) = models["chat"].generate([HELLO], GenerateOptions(max_tokens=16, temperature=0.0, logprobs=2))
    body = good(served, "/v1/chat/completions", chat(logprobs=True, top_logprobs=2))
    (choice,) = body["choices"]
    assert choice["message"]["content"] == known.text
    told = choice["logprobs"]["content"]
    assert [one["logprob"] for one in told] == pytest.approx([one.logprob for one in known.logprobs], abs=1e-3)
    assert [len(one["top_logprobs"]) for one in told] == [2] * 16
    assert b"".join(bytes(one["bytes"]) for one in told).decode(errors="replace") == known.text
    assert body["usage"]["prompt_tokens"] == known.usage.prompt_tokens
    stop = known.text[5:8]
    cut = good(served, "/v1/chat/completions", chat(stop=[stop]))["choices"][0]
    assert (cut["message"]["content"], cut["finish_reason"]) == (known.text[: known.text.index(stop)], "stop")


def test_n_answers_are_seeded_and_come_by_index_streamed_or_whole(served: Served) -> None:
    asked = chat(n=3, temperature=1.0, seed=7)
    whole = [choice["message"]["content"] for choice in good(served, "/v1/chat/completions", asked)["choices"]]
    assert len(set(whole)) == 3
    chunks = served.call("/v1/chat/completions", {**asked, "stream": True}).chunks
    texts = ["", "", ""]
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == whole


def test_a_stream_ends_with_its_usage_and_done(served: Served) -> None:
    answer = served.call("/v1/chat/completions", chat(stream=True, stream_options={"include_usage": True}))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.events[-1] == "[DONE]"
    *_, last, usage = answer.chunks
    assert last["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 16


def test_schemas_and_tools_hold_the_answer_to_their_form(client: openai.OpenAI, served: Served) -> None:
    function = WEATHER["function"]
    assert isinstance(function, dict)
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": function["parameters"]}}
    filled = good(served, "/v1/chat/completions", chat(response_format=form, max_tokens=200))["choices"][0]
    assert json.loads(filled["message"]["content"])["city"] in ("Paris", "Rome")
    whole = client.chat.completions.create(
        model="chat", messages=HELLO, tools=[WEATHER], tool_choice="required", max_tokens=200, temperature=0,  # pyright: ignore
    )  # fmt: skip
    assert whole.choices[0].finish_reason == "tool_calls"
    assert whole.choices[0].message.tool_calls is not None
    call: Any = whole.choices[0].message.tool_calls[0]
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    arguments = ""
    for chunk in served.call(
        "/v1/chat/completions", chat(tools=[WEATHER], tool_choice="required", max_tokens=200, stream=True)
    ).chunks:
        for delta in chunk["choices"][0]["delta"].get("tool_calls") or ():
            arguments += delta["function"].get("arguments") or ""
    assert json.loads(arguments) == json.loads(call.function.arguments)


def test_a_prompt_longer_than_a_step_is_read_in_pieces(served: Served, models: dict[str, LoadedModel]) -> None:
    prompt = "The navy silk dress has pockets. " * 50
    (known,) = models["chat"].generate([prompt], GenerateOptions(max_tokens=8, temperature=0.0))
    assert known.usage.prompt_tokens > 600
    body = good(served, "/v1/completions", {"model": "chat", "prompt": prompt, "max_tokens": 8, "temperature": 0})
    assert body["choices"][0]["text"] == known.text
    again = good(served, "/v1/completions", {"model": "chat", "prompt": prompt, "max_tokens": 8, "temperature": 0})
    assert again["choices"][0]["text"] == known.text
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 500


def test_completions_echo_and_score_a_prompt(served: Served, models: dict[str, LoadedModel]) -> None:
    body = good(
        served,
        "/v1/completions",
        {"model": "chat", "prompt": ["The dress has pockets", "dogs"], "max_tokens": 0, "echo": True, "logprobs": 1},
    )
    first, second = body["choices"]
    assert (first["text"], second["text"]) == ("The dress has pockets", "dogs")
    assert first["logprobs"]["token_logprobs"][0] is None
    begin = "The dress has"
    (score,) = models["chat"].score([begin], [" pockets"])
    at = [i for i, offset in enumerate(first["logprobs"]["text_offset"]) if offset >= len(begin)]
    assert sum(first["logprobs"]["token_logprobs"][i] for i in at) == pytest.approx(score.logprob, abs=1e-3)
    beams = {"model": "chat", "prompt": "The dress has", "max_tokens": 6, "num_beams": 3, "temperature": 0}
    (known,) = models["chat"].generate(["The dress has"], GenerateOptions(max_tokens=6, temperature=0.0, num_beams=3))
    assert good(served, "/v1/completions", beams)["choices"][0]["text"] == known.text


def test_vectors_are_the_models_as_numbers_or_base64(
    client: openai.OpenAI, served: Served, models: dict[str, LoadedModel]
) -> None:
    known = models["sentences"].embed(TEXTS).tolist()
    for vector, one in zip(client.embeddings.create(model="sentences", input=TEXTS).data, known, strict=True):
        assert vector.embedding == pytest.approx(one, abs=1e-5)
    body = good(served, "/v1/embeddings", {"model": "sentences", "input": TEXTS, "encoding_format": "base64"})
    raw = base64.b64decode(body["data"][1]["embedding"])
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(known[1], abs=1e-5)
    short = good(served, "/v1/embeddings", {"model": "sentences", "input": TEXTS, "dimensions": 8})["data"][0]
    assert sum(x * x for x in short["embedding"]) == pytest.approx(1, abs=1e-5)


def test_documents_are_ranked_as_they_are_scored(served: Served) -> None:
    documents = ["a dog", "猫坐在垫子上", "The cat sat on the mat."]
    ranks = good(
        served, "/v1/rerank", {"model": "sentences", "query": TEXTS[0], "documents": documents, "top_n": 2}
    )["results"]  # fmt: skip
    assert ranks[0]["index"] == 2
    assert len(ranks) == 2
    asked = {"model": "sentences", "text_1": TEXTS[0], "text_2": documents}
    scores = [item["score"] for item in good(served, "/v1/score", asked)["data"]]
    assert [rank["relevance_score"] for rank in ranks] == pytest.approx(sorted(scores, reverse=True)[:2])


def test_labels_and_spans_are_the_models(served: Served, models: dict[str, LoadedModel]) -> None:
    known = [{label.label: label.probability for label in labels} for labels in models["classes"].classify(TEXTS)]
    for item, one in zip(
        good(served, "/v1/classify", {"model": "classes", "input": TEXTS})["data"], known, strict=True
    ):
        assert dict(zip(item["labels"], item["probs"], strict=True)) == pytest.approx(one, abs=1e-5)
    single = good(served, "/predict", {"model": "classes", "text": TEXTS[0]})
    assert set(single["probabilities"]) == set(LABELS)
    assert single["probabilities"] == pytest.approx(known[0], abs=1e-5)
    both = good(served, "/predict", {"model": "classes", "texts": TEXTS})
    assert [one["label"] for one in both["predictions"]] == [max(one, key=one.__getitem__) for one in known]
    assert good(served, "/predict", json.dumps(TEXTS[0]).encode()) == single
    spans = [[(s.label, s.start, s.end) for s in found] for found in models["tags"].tag(TEXTS)]
    told = good(served, "/v1/tag", {"model": "tags", "input": TEXTS})["data"]
    assert [[(s["label"], s["start"], s["end"]) for s in one["spans"]] for one in told] == spans


@pytest.mark.parametrize("body", [{"text": ""}, {"text": "  "}, {"texts": []}, "", [], [""], {}])
def test_nothing_to_predict_is_refused(served: Served, body: Any) -> None:
    answer = served.call("/predict", json.dumps(body).encode())
    assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")


def test_responses_go_on_from_each_other_and_stream_typed_events(
    client: openai.OpenAI, models: dict[str, LoadedModel]
) -> None:
    first = client.responses.create(model="chat", input="Say hello", max_output_tokens=16, temperature=0, store=True)
    (known,) = models["chat"].generate([HELLO], GenerateOptions(max_tokens=16, temperature=0.0))
    assert first.output_text == known.text
    assert client.responses.retrieve(first.id).output_text == known.text
    second = client.responses.create(model="chat", input="More", previous_response_id=first.id, max_output_tokens=4)
    assert second.usage is not None
    assert second.usage.input_tokens > known.usage.prompt_tokens + 10
    with client.responses.create(
        model="chat", input="Say hello", max_output_tokens=16, temperature=0, stream=True
    ) as stream:
        events = list(stream)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == known.text
    assert events[-1].type in ("response.completed", "response.incomplete")


def test_tokens_go_there_and_back(served: Served) -> None:
    ids = good(served, "/tokenize", {"model": "chat", "prompt": "The navy dress 丹炉"})["tokens"]
    assert good(served, "/detokenize", {"model": "chat", "tokens": ids})["prompt"] == "The navy dress 丹炉"
    assert good(served, "/tokenize", {"prompt": "<|im_end|>"})["count"] == 1
    assert served.call("/tokenizer_info").json["eos_token"] == "<|im_end|>"


def test_models_tell_what_they_can(client: openai.OpenAI, served: Served) -> None:
    assert [model.id for model in client.models.list()] == ["chat", "sentences", "classes", "tags"]
    assert good(served, "/v1/models/classes", None)["labels"] == list(LABELS)
    refused = served.call("/v1/chat/completions", chat(model="classes"))
    assert (refused.status, refused.json["error"]["code"]) == (400, "unsupported_model")
    assert served.call("/v1/chat/completions", chat(model="nobody")).status == 404
    assert served.call("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "/"}).status == 403


def test_what_cannot_be_answered_says_why(served: Served) -> None:
    long = served.call("/v1/completions", {"model": "chat", "prompt": [5] * 1025})
    assert (long.status, long.json["error"]["code"]) == (400, "context_length_exceeded")
    late = served.call("/v1/completions", {"model": "chat", "prompt": "x", "max_tokens": 900, "timeout": 0.001})
    assert (late.status, late.json["error"]["code"]) == (504, "timeout")
    image = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}
    refused = served.call("/v1/chat/completions", chat(messages=[{"role": "user", "content": [image]}]))
    assert refused.status == 400


def test_metrics_add_up(served: Served) -> None:
    names = ("prompt_tokens_total", "generation_tokens_total", "request_queue_time_seconds_count")
    time.sleep(TELLS_S)
    before = {name: served.metric(f"danlu:{name}", model_name="chat") for name in names}
    usages = [good(served, "/v1/chat/completions", chat(n=2))["usage"] for _ in range(3)]
    time.sleep(TELLS_S)
    after = {name: served.metric(f"danlu:{name}", model_name="chat") for name in names}
    grown = {name: after[name] - before[name] for name in names}
    assert grown["generation_tokens_total"] == sum(usage["completion_tokens"] for usage in usages)
    assert grown["prompt_tokens_total"] == sum(usage["prompt_tokens"] for usage in usages)
    assert grown["request_queue_time_seconds_count"] == 3
    finished = served.metric("danlu:request_success_total", model_name="chat")
    assert served.metric("danlu:e2e_request_latency_seconds_count", model_name="chat") == finished
    assert served.is_idle()
