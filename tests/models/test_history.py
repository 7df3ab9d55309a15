import random
from collections import Counter

import pytest
import torch

from danlu.core.records import GenerateOptions
from danlu.models import history as histories
from danlu.models.defaults import GenerationDefaults
from danlu.models.history import History
from danlu.models.steering import Steering


def repeated(ids: list[int], size: int) -> set[int]:
    """The plain way."""
    before = ids[len(ids) - size + 1 :]
    starts = range(len(ids) - size + 1) if len(before) == size - 1 else range(0)
    return {ids[start + size - 1] for start in starts if ids[start : start + size - 1] == before}


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_what_is_kept_token_by_token_is_what_counting_afresh_gives(size: int) -> None:
    numbers = random.Random(size)
    prompt, answer = [numbers.randrange(9) for _ in range(30)], list[int]()
    history = History(prompt, size)
    for _ in range(200):
        answer += [numbers.randrange(12) for _ in range(numbers.randrange(3))]
        history.follow(answer)
        assert history.ids == prompt + answer
        assert sorted(history.seen.tolist()) == sorted({*prompt, *answer})
        assert dict(zip(history.answer_tokens.tolist(), history.counts.tolist(), strict=True)) == Counter(answer)
        assert history.repeated == repeated(prompt + answer, size)
        assert history.repeated == histories.repeated(prompt + answer, size)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_text_of_a_few_tokens_looked_at_once_repeats_what_counting_gives(size: int) -> None:
    for ids in ([], [4], [4, 4], [4, 4, 4], [1, 2, 1, 2, 1]):
        assert histories.repeated(ids, size) == repeated(ids, size)


def test_another_answer_is_read_from_its_start() -> None:
    """Beams ask about many answers in turn."""
    history = History([1, 2], 2)
    for answer in ([3, 3, 1], [4], [], [3, 3, 1, 2]):
        history.follow(answer)
        assert history.ids == [1, 2, *answer]
        assert sorted(history.seen.tolist()) == sorted({1, 2, *answer})
        assert dict(zip(history.answer_tokens.tolist(), history.counts.tolist(), strict=True)) == Counter(answer)


def test_an_answer_that_was_cut_is_read_from_its_start() -> None:
    history, answer = History([1]), [5, 6, 7]
    history.follow(answer)
    del answer[1:]
    history.follow(answer)
    assert history.ids == [1, 5]


def test_rules_over_a_growing_answer_are_those_over_a_fresh_one() -> None:
    options = GenerateOptions(
        repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3, no_repeat_ngram_size=2
    )  # fmt: skip
    numbers, prompt, answer = random.Random(0), [3, 1, 4, 1, 5], list[int]()
    scores = torch.randn(20, generator=torch.Generator().manual_seed(0))

    def steering() -> Steering:
        return Steering(options, GenerationDefaults(), prompt, 99, is_answer_alone=False)

    kept = steering()
    for _ in range(40):
        assert torch.equal(kept(scores, answer), steering()(scores, list(answer)))
        answer.append(numbers.randrange(20))
