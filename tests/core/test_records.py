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
        ({"stop": ("a",) * 5}, r"stop has 5 texts\. Use at most 4, each of 1 to 256 characters\."),
        ({"stop": ("",)}, r"stop has 1 texts\."),
        ({"stop": ("x" * 257,)}, r"stop has 1 texts\."),
    ],
)
def test_an_option_out_of_range_is_named_with_its_value(values: dict[str, Any], message: str):
    with pytest.raises(RequestError, match=message) as caught:
        GenerateOptions(**values)
    assert caught.value.status == 400
    assert caught.value.param == next(iter(values))


def test_the_edges_of_each_range_are_allowed():
    GenerateOptions(max_tokens=1, temperature=2.0, top_p=1.0, top_k=0, stop=("x" * 256,) * 4)


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
