"""Embeddings, ranking, scores, labels and spans."""

import json
from dataclasses import replace

import openai
import pytest

from danlu.core.errors import ModelError
from tests.serve.http.routes.test_chat import PIXEL


def post(running, path, body):
    status, _, content = running.call(path, body)
    assert status == 200, content
    return json.loads(content)


def test_the_openai_client_gets_vectors_in_both_encodings(running):
    with openai.OpenAI(base_url=running.url + "/v1", api_key="none") as client:
        packed = client.embeddings.create(model="fake", input=["a", "b"])  # the client asks for base64
        plain = client.embeddings.create(model="fake", input=["a", "b"], encoding_format="float")
        cut = client.embeddings.create(model="fake", input="a", dimensions=2)
    assert [item.embedding for item in packed.data] == [[3, 4, 0, 0], [3, 4, 0, 1]]
    assert [item.embedding for item in plain.data] == [[3, 4, 0, 0], [3, 4, 0, 1]]
    assert cut.data[0].embedding == pytest.approx([0.6, 0.8])
    assert (plain.usage.prompt_tokens, plain.usage.total_tokens) == (2, 2)


@pytest.mark.parametrize(
    ("given", "seen"), [("a", ("a",)), (["a", "b"], ("a", "b")), ([1, 2], ([1, 2],)), ([[1], [2, 3]], ([1], [2, 3]))]
)
def test_texts_and_token_ids_are_embedded(running, given, seen):
    post(running, "/v1/embeddings", {"input": given, "input_type": "query"})
    request = running.engine.seen[-1]
    assert (request.task, request.texts, request.prompt, request.truncates) == ("embed", seen, "query", True)


def test_documents_are_ranked(running):
    body = {"query": "q", "documents": ["long text", {"text": "longest text of all"}, "x"], "top_n": 2}
    for path in ("/v1/rerank", "/rerank"):
        answer = post(running, path, body)
        assert [(r["index"], r["relevance_score"]) for r in answer["results"]] == [(1, 0.19), (0, 0.09)]
        assert answer["results"][0]["document"] == {"text": "longest text of all"}
    assert running.engine.seen[-1].texts[2] == ("q", "x")
    assert "document" not in post(running, "/rerank", {**body, "return_documents": False})["results"][0]


@pytest.mark.parametrize(
    ("left", "right", "pairs"),
    [
        ("a", "b", (("a", "b"),)),
        ("a", ["b", "c"], (("a", "b"), ("a", "c"))),
        (["a", "b"], ["c", "d"], (("a", "c"), ("b", "d"))),
    ],
)
def test_pairs_are_scored(running, left, right, pairs):
    answer = post(running, "/v1/score", {"text_1": left, "text_2": right})
    assert running.engine.seen[-1].texts == pairs
    assert [item["score"] for item in answer["data"]] == [0.01] * len(pairs)


def test_labels_come_in_the_order_of_the_model(running):
    for path in ("/v1/classify", "/classify"):
        answer = post(running, path, {"input": ["fine", "well"]})
        assert answer["data"][1] == {
            "index": 1, "label": "good", "probs": [0.25, 0.75], "num_classes": 2, "labels": ["bad", "good"],
        }  # fmt: skip


def test_spans_are_tagged(running):
    answer = post(running, "/v1/tag", {"input": "Paris is large"})
    assert answer["data"] == [{"index": 0, "spans": [{"label": "CITY", "start": 0, "end": 5, "score": 0.5}]}]


ONE = {"model": "fake", "label": "good", "probabilities": {"good": 0.75, "bad": 0.25}}


@pytest.mark.parametrize("body", [{"text": "fine"}, "fine"])
def test_a_text_is_predicted(running, body):
    assert post(running, "/predict", json.dumps(body).encode()) == ONE


@pytest.mark.parametrize("body", [{"texts": ["a", "b"]}, {"text": ["a", "b"]}, ["a", "b"]])
def test_texts_are_predicted_in_order(running, body):
    answer = post(running, "/predict", json.dumps(body).encode())
    assert answer["predictions"] == [{"label": "good", "probabilities": {"good": 0.75, "bad": 0.25}}] * 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", {"text": "a", "text_pair": "b"}),
        ("/predict", {"texts": [["a", "b"]]}),
        ("/predict", [["a", "b"]]),
        ("/v1/classify", {"input": [["a", "b"]]}),
    ],
)
def test_pairs_are_labelled_together(running, path, body):
    post(running, path, json.dumps(body).encode())
    assert running.engine.seen[-1].texts == (("a", "b"),)


def test_a_failing_engine_is_500(running):
    running.engine.refusal = ModelError("weights broke")
    assert running.error_of("/predict", {"text": "x"})[0] == 500


@pytest.mark.parametrize(
    ("path", "body", "param", "text"),
    [
        ("/predict", {"text": ""}, "text", "text is empty"),
        ("/predict", {"text": " \n"}, "text", "text is empty"),
        ("/predict", {"texts": ["a", ""]}, "texts[1]", "texts[1] is empty"),
        ("/predict", {"texts": []}, "texts", "texts is empty"),
        ("/predict", {}, "text", "None of text and images were sent"),
        ("/predict", {"text": "a", "texts": ["b"]}, "text", "both given"),
        ("/predict", [], "texts", "texts is empty"),
        ("/predict", [["a", "b", "c"]], "[0]", "length <= 2"),
        ("/predict", {"texts": ["a"], "text_pair": "b"}, "text_pair", "needs one text beside it"),
        ("/predict", 5, None, "got `int`"),
        ("/v1/embeddings", {"input": []}, "input", "input is empty"),
        ("/v1/embeddings", {"input": ["a", 1]}, "input", "mixes texts and token ids"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, "input", "2,049 texts. Send at most 2,048"),
        ("/v1/embeddings", {"input": "a", "dimensions": 5}, "dimensions", "dimensions is 5, and 'fake' has 4"),
        ("/v1/embeddings", {"images": [PIXEL]}, "images", "reads text alone"),
        ("/v1/rerank", {"query": " ", "documents": ["a"]}, "query", "query is empty"),
        ("/v1/rerank", {"query": "q", "documents": []}, "documents", "length >= 1"),
        ("/v1/score", {"text_1": "a"}, "text_2", "text_2 is missing"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": "c"}, "text_1", "text_1 has 2 texts and text_2 1"),
    ],
)
def test_a_mistake_is_named(running, path, body, param, text):
    status, error = running.error_of(path, json.dumps(body).encode())
    assert (status, error["param"]) == (400, param)
    assert text in error["message"]


def test_images_are_read_by_models_that_take_them(running):
    running.engine.served = [replace(running.engine.served[0], takes_images=True)]
    assert len(post(running, "/v1/embeddings", {"images": [PIXEL, PIXEL]})["data"]) == 2
    assert post(running, "/predict", {"images": [PIXEL]})["predictions"][0]["label"] == "good"
    assert running.engine.seen[-1].images[0].startswith(b"\x89PNG")


def test_a_model_that_cannot_read_is_refused(running):
    running.engine.served = [replace(running.engine.served[0], abilities=frozenset({"write"}))]
    status, error = running.error_of("/v1/embeddings", {"model": "fake", "input": "a"})
    assert status == 400
    assert error["message"] == "The model 'fake' cannot embed; it can write text. No model of this server can."
