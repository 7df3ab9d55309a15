"""The client as a LanguageModel, for callers that are not async."""

import pytest

from danlu.client import Client, RemoteModel
from danlu.core.errors import RequestError
from danlu.core.records import GenerateOptions, LanguageModel, Score
from tests.client.script import TEXT, event, stream_of


def test_options_that_are_not_sent_are_refused(script):
    with RemoteModel(Client(script.url)) as model:
        for options, name in (
            (GenerateOptions(min_p=0.1), r"min_p is 0\.1"),
            (GenerateOptions(num_beams=2), "num_beams is 2"),
            (GenerateOptions(logit_bias={3: 1.0}), r"logit_bias is \{3: 1\.0\}"),
        ):
            with pytest.raises(RequestError, match=f"{name}, which is not sent to servers") as caught:
                model.generate(["a"], options)
            assert (caught.value.status, caught.value.code) == (501, "unsupported")


def test_a_remote_model_scores_by_the_echo_of_a_prompt(script):
    logprobs = {"token_logprobs": [None, -1.0, -0.5, -0.25, -3.0], "top_logprobs": [None, {}, {"a": -0.5},
                {"b": -0.125, "c": -0.25}, {"d": -0.1}]}  # fmt: skip
    script.replies = [
        (200, {}, {"tokens": [5, 6]}), (200, {}, {"tokens": [7, 8]}), (200, {}, {"choices": [{"logprobs": logprobs}]}),
    ]  # fmt: skip
    with RemoteModel(Client(script.url, model="m")) as model:
        assert isinstance(model, LanguageModel)
        [score] = model.score(["a"], ["b"])
    assert score == Score(logprob=-0.75, num_tokens=2, is_greedy=False, token_logprobs=(-0.5, -0.25))
    paths = [path for path, _, _ in script.requests]
    assert paths == ["/tokenize", "/tokenize", "/v1/completions"]
    assert script.requests[2][2] == {"model": "m", "prompt": [5, 6, 7, 8], "max_tokens": 0, "echo": True, "logprobs": 1}


@pytest.mark.parametrize(
    ("replies", "message", "status"),
    [
        ([(404, {}, {"error": {"message": "no"}})], "has no /tokenize, so nothing can be scored there", 501),
        ([(404, {}, {"error": {"message": "gone", "code": "model_not_found"}})], "gone", 404),
        ([(200, {}, {"tokens": [5]})] * 2 + [(200, {}, TEXT)], "does not tell how likely a prompt is", 501),
        ([(200, {}, {"tokens": [5]}), (200, {}, {"tokens": []})], "must both have at least one token", 400),
        ([(200, {}, {"tokenz": [5]})], "does not answer in OpenAI's form", 502),
    ],
)
def test_servers_that_cannot_score_are_named(script, replies, message, status):
    script.replies = list(replies)
    with (
        RemoteModel(Client(script.url, model="m")) as model,
        pytest.raises(RequestError, match=message) as caught,
    ):
        model.score(["a"], ["b"])
    assert caught.value.status == status


def test_a_remote_model_keeps_order_reports_progress_and_closes_twice(script):
    script.replies = [(200, {}, TEXT)] * 5
    done = []
    model = RemoteModel(Client(script.url, model="m"), concurrency=2)
    answers = model.generate(["a"] * 5, on_advance=done.append)
    assert [answer.text for answer in answers] == ["there"] * 5
    assert done == [1] * 5
    assert model.generate([]) == []
    model.close()
    model.close()


def test_the_first_failure_of_a_remote_model_is_raised_as_it_is(script):
    script.replies = [(400, {}, {"error": {"message": "no", "param": "prompt"}})] * 3
    with RemoteModel(Client(script.url, model="m"), concurrency=1) as model, pytest.raises(RequestError, match=r"^no$"):
        model.generate(["a", "b", "c"])
    assert len(script.requests) == 1


def test_a_remote_stream_left_early_outlives_its_model(script):
    script.replies = [stream_of(event(choices=[{"text": "a"}]), event(choices=[{"text": "b"}]), None)]
    model = RemoteModel(Client(script.url, model="m"))
    deltas = model.stream("p")
    assert next(deltas).text == "a"
    model.close()
    deltas.close()
