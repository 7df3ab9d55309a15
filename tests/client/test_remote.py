"""The client as a LanguageModel, for callers that are not async."""

import pytest

from danlu.client import Client, RemoteModel
from danlu.core.errors import RequestError
from danlu.core.records import GenerateOptions, LanguageModel
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


def test_a_remote_model_refuses_to_score(script):
    with RemoteModel(Client(script.url)) as model:
        assert isinstance(model, LanguageModel)
        with pytest.raises(RequestError, match="Scoring is not supported remotely"):
            model.score(["a"], ["b"])


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
