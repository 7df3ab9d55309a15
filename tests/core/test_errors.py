from __future__ import annotations

import pickle

import pytest

from danlu.core import errors
from danlu.core.errors import ConfigError, DanluError, OverloadedError, RequestError, nearest


def test_nearest_names_the_closest_word():
    assert nearest("stpes", ["steps", "seed", "batch"]) == "Did you mean 'steps'?"


def test_nearest_lists_all_words_in_order_when_none_is_close():
    assert nearest("zzz", ["steps", "batch"]) == "Known: batch, steps."


def test_nearest_says_when_nothing_is_known():
    assert nearest("x", []) == "None are known here."


def test_nearest_takes_any_iterable_once():
    assert nearest("sed", (word for word in ("seed", "steps"))) == "Did you mean 'seed'?"


def test_an_error_reads_as_message_then_hint():
    assert str(ConfigError("micro_batch 7 does not divide batch 64.", "Try 8.")) == (
        "micro_batch 7 does not divide batch 64. Try 8."
    )
    assert str(ConfigError("No hint.")) == "No hint."


@pytest.mark.parametrize(
    "kind", [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
)
def test_every_error_is_a_danlu_error_with_message_and_hint(kind: type[DanluError]):
    error = kind("What.", "Do.")
    assert isinstance(error, DanluError)
    assert (error.message, error.hint) == ("What.", "Do.")
    assert kind.__doc__


def test_a_request_error_carries_what_an_http_answer_needs():
    error = RequestError("No model 'x'.", status=404, code="model_not_found", param="model")
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert RequestError("Bad.").status == 400


def test_overload_is_status_429_with_a_time_to_retry():
    error = OverloadedError("The queue is full.", retry_after_s=3)
    assert (error.status, error.code, error.retry_after_s) == (429, "rate_limit_exceeded", 3)


def test_an_error_crosses_a_process_border_whole():
    error = pickle.loads(pickle.dumps(OverloadedError("Full.", "Wait.", retry_after_s=7)))
    assert (error.message, error.hint, error.status, error.retry_after_s) == ("Full.", "Wait.", 429, 7)
