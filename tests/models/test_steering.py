from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation import logits_process as theirs

from danlu.core.errors import RequestError
from danlu.core.records import GenerateOptions
from danlu.models.defaults import GenerationDefaults
from danlu.models.history import History
from danlu.models.steering import Steering, completing

PROMPT, ANSWER = [5, 6, 7, 5, 6], [9, 7, 5, 9, 5, 6]
IDS = PROMPT + ANSWER


def scores(seed: int = 0) -> Tensor:
    return 3.0 * torch.randn(40, generator=torch.Generator().manual_seed(seed))


def steered(defaults: GenerationDefaults | None = None, answer: list[int] | None = None, **options: object) -> Tensor:
    steering = Steering(
        GenerateOptions(**options),  # type: ignore[arg-type]
        defaults or GenerationDefaults(end_ids=frozenset({2, 3})),
        PROMPT,
        12,
        is_answer_alone=True,
    )
    before = scores()
    found = steering(before, ANSWER if answer is None else answer)
    assert torch.equal(before, scores()), "the input stays as it is"
    return found


def by_transformers(processor: theirs.LogitsProcessor, ids: list[int] | None = None) -> Tensor:
    return processor(torch.tensor([IDS if ids is None else ids]), scores().unsqueeze(0))[0]  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_nothing_asked_changes_nothing() -> None:
    assert torch.equal(steered(), scores())
    assert Steering(GenerateOptions(), GenerationDefaults(), [], 9, is_answer_alone=True).is_idle


@pytest.mark.parametrize("penalty", [0.5, 1.3, 5.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    expected = by_transformers(theirs.RepetitionPenaltyLogitsProcessor(penalty))
    assert torch.equal(steered(repetition_penalty=penalty), expected)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 20])
def test_no_ngram_is_repeated_as_in_transformers(size: int) -> None:
    expected = by_transformers(theirs.NoRepeatNGramLogitsProcessor(size))
    assert torch.equal(steered(no_repeat_ngram_size=size), expected)


def test_ngrams_that_end_alike_are_found() -> None:
    assert History([1, 2, 3, 1, 2, 4, 1, 2], 3).repeated == {3, 4}
    assert History([1, 2], 3).repeated == set()
    assert History([1], 3).repeated == set()


def test_a_bias_is_added_as_in_transformers() -> None:
    bias = {3: 2.5, 39: -100.0}
    expected = by_transformers(theirs.SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()}))
    assert torch.equal(steered(logit_bias=bias), expected)


def test_a_bias_for_a_token_that_does_not_exist_is_refused() -> None:
    with pytest.raises(RequestError, match=r"logit_bias has token id 40. Ids are 0 to 39") as error:
        steered(logit_bias={40: 1.0})
    assert error.value.param == "logit_bias"


def test_presence_and_frequency_count_the_answer_alone() -> None:
    """OpenAI's definition: logit - count · frequency - (count > 0) · presence."""
    found = steered(presence_penalty=0.5, frequency_penalty=0.25)
    expected = scores()
    for token in range(40):
        count = ANSWER.count(token)
        expected[token] -= 0.25 * count + (0.5 if count else 0.0)
    torch.testing.assert_close(found, expected)
    assert found[PROMPT[1]] == scores()[6] - 0.75, "6 is in the answer once, in the prompt twice"
    assert torch.equal(steered(answer=[], presence_penalty=1.0, frequency_penalty=1.0), scores())


def test_no_end_before_the_least_length() -> None:
    expected = by_transformers(
        theirs.MinNewTokensLengthLogitsProcessor(len(PROMPT), 7, torch.tensor([2, 3, 11]), "cpu")  # pyright: ignore[reportArgumentType]
    )
    assert torch.equal(steered(min_tokens=7, stop_token_ids=(11,)), expected)
    assert torch.equal(steered(min_tokens=6, stop_token_ids=(11,)), scores())


def test_banned_sequences_are_those_of_transformers() -> None:
    words = [[4], [5, 6, 8], [6, 8], [7, 6, 1]]
    expected = by_transformers(theirs.NoBadWordsLogitsProcessor(words))  # pyright: ignore[reportArgumentType]
    assert torch.equal(steered(GenerationDefaults(banned=tuple(map(tuple, words)))), expected)
    assert completing([6], [(6, 8), (5, 6, 8)]) == {8}


def test_first_and_last_tokens_are_forced_as_in_transformers() -> None:
    defaults = GenerationDefaults(first_ids=(4,), last_ids=(2, 3))
    expected = by_transformers(theirs.ForcedBOSTokenLogitsProcessor(4), ids=[0])
    assert torch.equal(steered(defaults, answer=[]), expected)
    end = theirs.ForcedEOSTokenLogitsProcessor(len(PROMPT) + 12, [2, 3], "cpu")
    expected = by_transformers(end, ids=PROMPT + [1] * 11)
    assert torch.equal(steered(defaults, answer=[1] * 11), expected)
    assert torch.equal(steered(defaults, answer=[1] * 10), scores())


@pytest.mark.parametrize(
    ("defaults", "options"),
    [
        (GenerationDefaults(), {"no_repeat_ngram_size": 2}),
        (GenerationDefaults(end_ids=frozenset({2, 3})), {"min_tokens": 7, "stop_token_ids": (11,)}),
        (GenerationDefaults(banned=((5, 6, 8), (1,)), last_ids=(2,)), {"no_repeat_ngram_size": 3, "min_tokens": 9}),
        (GenerationDefaults(first_ids=(4,)), {}),
    ],
)
def test_what_is_forbidden_is_all_that_changes(defaults: GenerationDefaults, options: dict[str, Any]) -> None:
    found = steered(defaults, **options)
    steering = Steering(GenerateOptions(**options), defaults, PROMPT, 12, is_answer_alone=True)
    forbidden = steering.forbidden(tuple(ANSWER))
    assert forbidden == {token for token in range(40) if found[token] == float("-inf")}
    assert torch.equal(found[found > float("-inf")], scores()[found > float("-inf")])


@pytest.mark.parametrize(
    "options",
    [{"repetition_penalty": 1.1}, {"presence_penalty": 0.1}, {"frequency_penalty": 0.1}, {"logit_bias": {1: 1.0}}],
)  # fmt: skip
def test_rules_that_change_scores_do_more_than_forbid(options: dict[str, Any]) -> None:
    asked = GenerateOptions(**options)
    assert Steering(asked, GenerationDefaults(), PROMPT, 12, is_answer_alone=True).forbidden([]) is None
    forced = Steering(GenerateOptions(), GenerationDefaults(first_ids=(4,)), [1], 12, is_answer_alone=True)
    assert (forced.forbidden([]), forced.forbidden([4])) == (None, set())


def test_a_decoders_first_token_is_not_forced() -> None:
    defaults = GenerationDefaults(first_ids=(4,))
    assert Steering(GenerateOptions(), defaults, PROMPT, 9, is_answer_alone=False).is_idle


def test_ignored_end_tokens_neither_end_nor_are_forced() -> None:
    defaults = GenerationDefaults(end_ids=frozenset({2}), last_ids=(2,))
    steering = Steering(
        GenerateOptions(ignore_eos=True, stop_token_ids=(7,)), defaults, [1], 3, is_answer_alone=False
    )  # fmt: skip
    assert steering.end_ids == {7}
    assert torch.equal(steering(scores(), [1, 1]), scores())


def test_rules_apply_in_the_order_of_transformers() -> None:
    found = steered(repetition_penalty=1.5, no_repeat_ngram_size=2, logit_bias={9: 4.0}, min_tokens=9)
    processors = theirs.LogitsProcessorList(
        [
            theirs.RepetitionPenaltyLogitsProcessor(1.5),
            theirs.SequenceBiasLogitsProcessor({(9,): 4.0}),
            theirs.NoRepeatNGramLogitsProcessor(2),
            theirs.MinNewTokensLengthLogitsProcessor(len(PROMPT), 9, torch.tensor([2, 3]), "cpu"),  # pyright: ignore[reportArgumentType]
        ]
    )
    assert torch.equal(found, processors(torch.tensor([IDS]), scores().unsqueeze(0))[0])  # pyright: ignore[reportArgumentType]
