from __future__ import annotations

from typing import Any

import pytest

from danlu.core.errors import RequestError
from danlu.core.records import Completion, Delta, GenerateOptions, LanguageModel, Score, Usage


def test_the_default_is_greedy():
    options = GenerateOptions()
    assert (options.temperature, options.top_p, options.top_k, options.stop, options.seed) == (0.0, 1.0, 0, (), None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tokens": 0}, r"max_tokens is 0\. Use 1 or more\."),
        ({"temperature": -0.1}, r"temperature is -0\.1\. Use 0 to 2\."),
        ({"temperature": 2.1}, r"temperature is 2\.1\. Use 0 to 2\."),
        ({"temperature": float("nan")}, r"temperature is nan\. Use 0 to 2\."),
        ({"top_p": 0.0}, r"top_p is 0\.0\. Use more than 0, at most 1\."),
        ({"top_p": 1.5}, r"top_p is 1\.5\."),
        ({"top_k": -1}, r"top_k is -1\. Use 0 \(all\) or more\."),
        ({"min_tokens": -1}, r"min_tokens is -1\. Use 0 or more\."),
        ({"min_tokens": 9, "max_tokens": 8}, r"min_tokens is 9, more than max_tokens, 8\."),
        ({"min_p": 1.1}, r"min_p is 1\.1\. Use 0 to 1\."),
        ({"repetition_penalty": 0.0}, r"repetition_penalty is 0\.0\. Use more than 0, at most 100\."),
        ({"presence_penalty": 2.1}, r"presence_penalty is 2\.1\. Use -2 to 2\."),
        ({"frequency_penalty": -3.0}, r"frequency_penalty is -3\.0\. Use -2 to 2\."),
        ({"no_repeat_ngram_size": -1}, r"no_repeat_ngram_size is -1\. Use 0 \(none\) or more\."),
        ({"logit_bias": {1: 2.0, 7: 101.0}}, r"logit_bias of token 7 is 101\.0\. Use -100 to 100\."),
        ({"n": 0}, r"n is 0\. Use 1 to 128\."),
        ({"n": 3, "num_beams": 2}, r"n is 3 with 2 beams\. Use at most as many answers as beams"),
        ({"logprobs": 21}, r"logprobs is 21\. Use 0 to 20, or none\."),
        ({"logprobs": 1, "num_beams": 2}, r"logprobs is 1 with 2 beams\."),
        ({"num_beams": 65}, r"num_beams is 65\. Use 1 \(none\) to 64\."),
        ({"num_beams": 2, "temperature": 1.0}, r"num_beams and temperature are both given\. Give one of them\."),
        ({"lookup_tokens": 2, "penalty_alpha": 0.5}, r"lookup_tokens and penalty_alpha are both given\."),
        ({"length_penalty": 11.0}, r"length_penalty is 11\.0\. Use -10 to 10\."),
        ({"early_stopping": "sometimes"}, r"early_stopping is 'sometimes'\. Use True, False or \"never\"\."),
        ({"lookup_tokens": 65}, r"lookup_tokens is 65\. Use 0 \(none\) to 64\."),
        ({"penalty_alpha": 1.5}, r"penalty_alpha is 1\.5\. Use 0 \(none\) to 1\."),
        ({"stop": ("a",) * 17}, r"stop has 17 texts\. Use at most 16, each of 1 to 256 characters\."),
        ({"stop": ("",)}, r"stop has 1 texts\."),
        ({"stop": ("x" * 257,)}, r"stop has 1 texts\."),
    ],
)
def test_an_option_out_of_range_is_named_with_its_value(values: dict[str, Any], message: str):
    with pytest.raises(RequestError, match=message) as caught:
        GenerateOptions(**values)
    assert caught.value.status == 400
    assert caught.value.param == next(iter(values))


def test_contrastive_search_needs_tokens_to_choose_from() -> None:
    with pytest.raises(
        RequestError, match=r"penalty_alpha is 0\.5 and top_k 1\. Contrastive search chooses among"
    ) as e:
        GenerateOptions(penalty_alpha=0.5, top_k=1)
    assert e.value.param == "top_k"


@pytest.mark.parametrize(
    "edges",
    [
        {"max_tokens": 1, "temperature": 2.0, "top_p": 1.0, "top_k": 0, "stop": ("x" * 256,) * 4},
        {"max_tokens": 8, "min_tokens": 8, "min_p": 1.0, "n": 128, "logprobs": 20, "repetition_penalty": 100.0},
        {"presence_penalty": 2.0, "frequency_penalty": -2.0, "logit_bias": {1: -100.0, 2: 100.0}, "logprobs": 0},
        {"num_beams": 64, "n": 64, "length_penalty": -10.0, "early_stopping": "never"},
        {"lookup_tokens": 64},
        {"penalty_alpha": 1.0, "top_k": 2},
    ],
)
def test_the_edges_of_each_range_are_allowed_and_kept(edges: dict[str, Any]):
    options = GenerateOptions(**edges)
    assert {name: getattr(options, name) for name in edges} == edges


class Echo:
    """The smallest language model: repeats the prompt."""

    def generate(self, prompts: Any, options: Any = None, on_advance: Any = None) -> list[Completion]:
        usage = Usage(prompt_tokens=1, completion_tokens=1)
        return [Completion(text=p, finish_reason="stop", usage=usage) for p in prompts]

    def stream(self, prompt: Any, options: Any = None) -> Any:
        yield Delta(text=prompt, finish_reason="stop")

    def score(self, prompts: Any, continuations: Any) -> list[Score]:
        return [Score(logprob=-1.0, num_tokens=1, is_greedy=True) for _ in prompts]


def test_anything_with_the_three_methods_is_a_language_model():
    assert isinstance(Echo(), LanguageModel)
    assert not isinstance(object(), LanguageModel)
