"""Rollouts: which prompts are asked, what is kept of the answers, and how they are spread."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from danlu.core.errors import DataError, TrainError
from danlu.core.records import GenerateOptions
from danlu.text.chat import ChatFormat, RenderedChat
from danlu.train.batches import RowBatches
from danlu.train.losses.completions import read_completions
from danlu.train.rewards import Exact
from danlu.train.rollout import Try, TryBatches, Trying, describe, encode_prompts, write_answers

from .chats import fresh
from .opinions import job_in, pairs

pytestmark = pytest.mark.usefixtures("one_thread")


def trying(folder: Path, model: Any, seed: int = 3, **more: Any) -> Trying:
    prompts = encode_prompts(pairs(5), model.chat, 80).items
    return Trying(
        model=model,
        order=RowBatches(prompts, lambda one: len(one.ids), seed=0, rows_per_step=2),
        options=GenerateOptions(max_tokens=4, temperature=0.7, n=3),
        rewards={"exact": (Exact(column="chosen"), 2.0)},
        rollout=write_answers,
        job=job_in(folder, seed=seed),
        **more,
    )


@pytest.fixture(scope="module")
def chat(tiny_folder: Path) -> ChatFormat:
    return fresh(tiny_folder).chat


def test_prompts_are_what_serving_would_read(chat: ChatFormat) -> None:
    ask = {"role": "user", "content": "navy dress"}
    rows = [{"prompt": "navy dress"}, {"prompt": [ask]}, {"messages": [ask, {"role": "assistant", "content": "x"}]}]
    expected = chat.prompt_ids([{"role": "user", "content": "navy dress"}])
    assert [one.ids for one in encode_prompts(rows, chat, 80).items] == [expected] * 3
    plain = ChatFormat(chat.tokenizer, None)
    assert encode_prompts(rows[:1], plain, 80).items[0].ids == chat.tokenizer.encode("navy dress")


def test_prompts_that_are_too_long_are_left_out(chat: ChatFormat) -> None:
    rows = [{"prompt": "x " * 200}, {"prompt": "x"}]
    assert dict(encode_prompts(rows, chat, 80).left_out) == {"too_long": 1}
    with pytest.raises(TrainError, match=r"No row can be trained on: 1 too_long\. A row needs a prompt within"):
        encode_prompts(rows[:1], chat, 80)
    with pytest.raises(DataError, match=r"A row has an answer but nothing that asks for it\. Give a prompt"):
        encode_prompts([{"messages": [{"role": "assistant", "content": "x"}]}], chat, 80)


def test_a_rollout_is_the_same_again_and_another_one_differs(tiny_folder: Path, tmp_path: Path) -> None:
    model = fresh(tiny_folder)
    first, second = trying(tmp_path / "a", model).at(0), trying(tmp_path / "a", model).at(1)
    assert trying(tmp_path / "b", model).at(0) == first
    assert trying(tmp_path / "c", model, seed=4).at(0) != first
    assert [len(group) for group in first] == [3, 3]
    assert {one.answer.ids[0] for group in first for one in group} == {one.answer.ids[0] for one in second[0]}
    assert len({one.text for group in first for one in group}) > 3, "answers differ"
    assert len(list((tmp_path / "a" / "work" / "rollouts").glob("*.json"))) == 2


def test_what_was_kept_is_used_only_for_the_same_question(tiny_folder: Path, tmp_path: Path) -> None:
    model = fresh(tiny_folder)
    first = trying(tmp_path, model).at(0)
    assert trying(tmp_path, model, seed=4).at(0) != first


def test_numbers_of_the_policy_and_of_the_reference_are_kept(tiny_folder: Path, tmp_path: Path) -> None:
    model = fresh(tiny_folder)
    groups = trying(tmp_path, model, needs_old=True, needs_reference=True).at(0)
    tries = [one for group in groups for one in group]
    with torch.no_grad():
        read = read_completions(model.network, [one.answer for one in tries], temperature=0.7)
    for one, values in zip(tries, read.tokens.logprobs.split(list(read.counts)), strict=True):
        assert one.old == pytest.approx(values.tolist(), rel=1e-3, abs=1e-4)
        assert one.reference == pytest.approx(one.old)


def test_rewards_read_the_row_of_their_prompt(tiny_folder: Path, tmp_path: Path) -> None:
    made = trying(tmp_path, fresh(tiny_folder))
    rows = [one.row for one in made.order.at(0)[0]]
    tries: list[dict[str, Any]] = [{"text": rows[0]["chosen"]}, {"text": rows[0]["chosen"]}]
    made._value(tries, made.order.at(0)[0])  # pyright: ignore[reportPrivateUsage]
    assert [told["rewards"] for told in tries] == [{"exact": 2.0}, {"exact": 0.0}]


def make_try(length: int, reward: float | None = 1.0) -> Try:
    return Try(RenderedChat(list(range(length)), [False] + [True] * (length - 1)), "", {"r": reward}, True)


def test_answers_are_spread_over_processes_and_micro_batches() -> None:
    items = [(make_try(n), float(n)) for n in (9, 3, 5, 7, 2, 8)]
    batches = TryBatches(per_epoch=1, tokens_per_step=1, micro_tokens=10, items=items)
    parts = [part for rank in range(2) for part in batches.at(0, rank, 2)]
    assert sorted(gain for part in parts for _, gain in part) == sorted(gain for _, gain in items)
    assert max(sum(len(tried.answer.ids) for tried, _ in part) for part in parts) <= 10
    assert len(batches.at(0, 0, 2)) == len(batches.at(0, 1, 2))


def test_a_rollout_in_numbers() -> None:
    groups = [[make_try(3, 1.0), make_try(5, 3.0)], [make_try(4, 2.0), make_try(4, 2.0)], [make_try(2, None)]]
    found = describe(groups)
    assert found["reward"] == 2.0
    assert found["reward_spread"] == pytest.approx(math.sqrt(0.5))
    assert found["equal_groups"] == pytest.approx(2 / 3)
    assert found["answer_tokens"] == pytest.approx((2 + 4 + 3 + 3 + 1) / 5)
    assert found["rewards/r"] == 2.0
