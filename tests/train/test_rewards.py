"""What answers are worth: known answers for every rule, and which settings are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from danlu.core.errors import ConfigError, DataError
from danlu.models.rehead import NewScorer, with_head
from danlu.train.preferences import encode_answer
from danlu.train.rewards import (
    Exact,
    Length,
    Regex,
    Reward,
    RewardConfig,
    Scorer,
    ValidJson,
    rewards_of,
    weighted,
)

from .chats import fresh

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("rule", "answers", "values"),
    [
        (Exact(), ["42", " 42\n", "43", ""], [1, 1, 0, 0]),
        (Exact(pattern=r"#### (\d+)"), ["so #### 41, no: #### 42", "42", "#### 4"], [1, 0, 0]),
        (Regex(pattern=r"^\w+\.$"), ["Yes.", "Yes", "Oh no."], [1, 0, 0]),
        (Length(characters=4), ["", "ab", "abcd", "abcdef", "a" * 9], [0, 0.5, 1, 0.5, 0]),
        (ValidJson(keys=("a",)), ['{"a": 1}', '{"b": 1}', "[1]", "{", "[" * 100_000], [1, 0.5, 0.5, 0, 0]),
    ],
)
def test_rules_value_answers(rule: Reward, answers: list[str], values: list[float]) -> None:
    assert rule([{"answer": 42}] * len(answers), answers) == pytest.approx(values)


def test_a_row_without_the_right_answer_is_refused() -> None:
    with pytest.raises(DataError, match=r"A row has no 'solution'\. Name the column with the right answers"):
        Exact(column="solution")([{"answer": 1}], ["1"])


def test_a_reward_names_one_rule() -> None:
    assert RewardConfig(length=Length(characters=3), weight=2.0).name == "length"
    assert RewardConfig(json=ValidJson()).rule == ValidJson()
    for wrong, count in ((RewardConfig, 0), (lambda: RewardConfig(exact=Exact(), json=ValidJson()), 2)):
        with pytest.raises(
            ConfigError, match=rf"A reward names {count} rules\. Give one of exact, regex, length, json"
        ):
            wrong()


def test_rewards_have_names_of_their_own() -> None:
    rules = [RewardConfig(regex=Regex(pattern=p), weight=w) for p, w in (("a", 1.0), ("b", 0.5))]
    found = weighted([*rules, RewardConfig(json=ValidJson())], {"mine": Regex(pattern="c")})
    assert {name: weight for name, (_, weight) in found.items()} == {"mine": 1, "regex": 1, "regex_2": 0.5, "json": 1}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regex(pattern="("), r"regex\.pattern is '\(', which is no regular expression: .*Mend it"),
        (lambda: Exact(pattern="x"), r"exact\.pattern is 'x'\. Put what is compared in a group"),
        (lambda: Length(characters=0), r"length\.characters is 0\. Use 1 or more"),
        (lambda: RewardConfig(exact=Exact(), weight=math.nan), r"weight is nan\. Use a number"),
    ],
)
def test_rules_that_mean_nothing_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_reward_model_reads_prompt_and_answer_as_one_conversation(tiny_folder: Path) -> None:
    model = with_head(fresh(tiny_folder), NewScorer(), seed=1)
    rows = [{"prompt": "navy dress"}, {"prompt": [{"role": "user", "content": "red top"}]}, {"prompt": "x"}]
    answers = ["Good.", "Bad " * 30, "y"]
    found = Scorer(model, max_tokens=60)(rows, answers)
    assert found[1] is None, "too long to have an opinion of"
    for place in (0, 2):
        ids = encode_answer({**rows[place], "chosen": answers[place]}, "chosen", model.chat).ids
        with torch.no_grad():
            assert found[place] == pytest.approx(rewards_of(model, [(ids, [0] * len(ids))]).item(), abs=1e-4)


def test_a_pair_of_texts_needs_texts(tiny_folder: Path) -> None:
    model = with_head(fresh(tiny_folder), NewScorer(), seed=1)
    model.chat.source = None
    assert Scorer(model)([{"prompt": "a b"}], ["c"])[0] is not None
    with pytest.raises(DataError, match=r"A row has prompt \[\] and chosen 'c'\. Give both as texts"):
        Scorer(model)([{"prompt": []}], ["c"])
