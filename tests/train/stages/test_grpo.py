"""Learning from rewards: it learns, resumes with the answers it had, and its loss is trl's on the same answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from danlu.core.errors import ConfigError
from danlu.core.events import Display
from danlu.core.records import Completion, GenerateOptions
from danlu.models.model import Model
from danlu.train.lora import LoraConfig, add_lora
from danlu.train.losses.policy import PolicyConfig
from danlu.train.optim import OptimConfig
from danlu.train.rewards import Length, Regex, RewardConfig
from danlu.train.rollout import Try, encode_prompts, write_answers
from danlu.train.stages import grpo
from danlu.train.stages.grpo import GrpoConfig, train

from ..chats import Stop, fresh
from ..losses import trl_peer as trl
from ..opinions import job_in, pairs

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = GrpoConfig(
    steps=10,
    prompts_per_step=3,
    group_size=6,
    max_answer_tokens=5,
    save_every=4,
    validate_every=5,
    samples=0,
    lora=LoraConfig(rank=8),
    optim=OptimConfig(learning_rate=3e-2, warmup_share=0.0),
)


def share_without_letters(rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[float | None]:
    """People like answers without letters."""
    return [sum(not letter.isalpha() for letter in answer) / max(1, len(answer)) for answer in answers]


def learn(
    model: Model, folder: Path, config: GrpoConfig = CONFIG, display: Display | None = None, **more: Any
) -> dict[str, Any]:
    prompts = encode_prompts(pairs(10), model.chat, 80).items
    more = {"rewards": {"plain": share_without_letters}, **more}
    return train(model, prompts[2:], prompts[:2], config, job_in(folder, display), **more)


def curve(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"policy": PolicyConfig(loss_type="grpo", kl_weight=0.01), "updates_per_rollout": 2, "steps": 28},
        {"policy": PolicyConfig(loss_type="dr_grpo"), "scale": "none"},
        {"baseline": "leave_one_out", "scale": "none"},
        {"group_size": 1, "prompts_per_step": 24, "baseline": "batch", "scale": "batch"},
    ],
    ids=["dapo", "grpo with kl", "dr_grpo", "rloo", "reinforce"],
)
def test_what_is_rewarded_becomes_likelier(tiny_folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Answers of one token: a bandit with as many arms as there are tokens, some of which pay."""
    config = dataclasses.replace(CONFIG, steps=16, prompts_per_step=4, max_answer_tokens=1)
    metrics = learn(fresh(tiny_folder), tmp_path, dataclasses.replace(config, **changes))
    rewards = [line["reward"] for line in curve(tmp_path) if "reward" in line]
    assert sum(rewards[:2]) / 2 < 0.85
    assert sum(rewards[-4:]) / 4 > 0.9
    assert metrics["last_reward"] == rewards[-1]
    assert metrics["validation_reward"] > 0.9


def test_the_curve_tells_what_was_written(tiny_folder: Path, tmp_path: Path) -> None:
    rules = (RewardConfig(length=Length(characters=9), weight=0.5), RewardConfig(regex=Regex(pattern="a")))
    policy = PolicyConfig(kl_weight=0.1)
    metrics = learn(fresh(tiny_folder), tmp_path, dataclasses.replace(CONFIG, steps=3, rewards=rules, policy=policy))
    told = [line for line in curve(tmp_path) if "reward" in line]
    steps = [line for line in curve(tmp_path) if "loss" in line]
    assert [line["step"] for line in told] == [line["step"] for line in steps] == [1, 2, 3]
    parts = ("rewards/plain", "rewards/length", "rewards/regex")
    assert told[0]["reward"] == pytest.approx(sum(told[0][name] for name in parts), abs=1e-5)
    assert 1 <= told[0]["answer_tokens"] <= 5
    assert {"reward_spread", "equal_groups", "finished"} <= told[0].keys()
    assert steps[0]["kl"] == pytest.approx(0.0, abs=1e-5), "the policy begins as its reference"
    assert steps[-1]["kl"] > 1e-4
    assert all({"entropy", "clipped"} <= line.keys() for line in steps)
    assert metrics["first_reward"] == told[0]["reward"]


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_micro_batches_change_nothing(tiny_folder: Path, tmp_path: Path, loss_type: Any) -> None:
    """Answers are those of the first step, so both runs learn from the same ones."""
    policy = PolicyConfig(loss_type=loss_type, kl_weight=0.1)
    lines: list[dict[str, Any]] = []
    for micro_tokens in (None, 1):
        config = dataclasses.replace(CONFIG, steps=1, micro_tokens=micro_tokens, policy=policy)
        learn(fresh(tiny_folder), tmp_path / str(micro_tokens), config)
        lines.append(next(line for line in curve(tmp_path / str(micro_tokens)) if "loss" in line))
    for key in ("loss", "grad_norm", "entropy", "kl"):
        assert lines[0][key] == pytest.approx(lines[1][key], rel=1e-3, abs=2e-5), key


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_the_loss_of_a_rollout_is_that_of_trl(tiny_folder: Path, tmp_path: Path, loss_type: Any) -> None:
    model = fresh(tiny_folder)
    add_lora(model, LoraConfig(rank=2))
    policy = PolicyConfig(loss_type=loss_type, kl_weight=0.2)
    config = dataclasses.replace(CONFIG, policy=policy, updates_per_rollout=2)
    prompts = encode_prompts(pairs(3), model.chat, 80).items
    trying = _Kept(model, tmp_path, config, prompts)
    items = trying.items()
    torch.manual_seed(0)
    for name, parameter in model.network.named_parameters():
        if ".b." in name:
            torch.nn.init.normal_(parameter, std=0.05)
    found = grpo._loss(model, items, config)  # pyright: ignore[reportPrivateUsage]
    counts = [sum(tried.answer.is_answer) for tried, _ in items]
    read = grpo.read_completions(model.network, [tried.answer for tried, _ in items])
    old = torch.tensor([x for tried, _ in items for x in tried.old or ()])
    reference = torch.tensor([x for tried, _ in items for x in tried.reference or ()])
    torch.testing.assert_close(old, reference, rtol=1e-4, atol=1e-4)  # the adapter changed nothing yet
    gains = torch.tensor([gain for _, gain in items])
    theirs, _ = trl.grpo(
        read.tokens.logprobs, counts, gains, old, reference, loss_type=loss_type, low=0.2, high=0.2, beta=0.2,
        level="token", longest=5,
    )  # fmt: skip
    assert (found.total / found.count).item() == pytest.approx(theirs.item(), rel=1e-4)
    assert float(found.parts["clipped"]) > 0


class _Kept:
    """The answers that a first step would learn from."""

    def __init__(self, model: Model, folder: Path, config: GrpoConfig, prompts: Any) -> None:
        self._given = (model, folder, config, prompts)

    def items(self) -> list[tuple[Try, float]]:
        model, folder, config, prompts = self._given
        order = grpo.RowBatches(prompts, lambda one: len(one.ids), seed=0, rows_per_step=3)
        trying = grpo.Trying(
            model=model,
            order=order,
            options=GenerateOptions(max_tokens=5, temperature=1.0, n=6),
            rewards={"plain": (share_without_letters, 1.0)},
            rollout=write_answers,
            job=job_in(folder),
            needs_old=True,
            needs_reference=True,
        )
        return grpo._compared(trying.at(0), config)  # pyright: ignore[reportPrivateUsage]


class Crash(Exception):
    """The process is gone."""


def test_a_run_that_crashed_twice_ends_as_if_it_had_not(tiny_folder: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, updates_per_rollout=3)
    learn(fresh(tiny_folder), tmp_path / "whole", config)
    for stop in (2, 7):
        with pytest.raises(Crash):
            learn(fresh(tiny_folder), tmp_path / "torn", config, display=Stop(stop, Crash()))
    learn(fresh(tiny_folder), tmp_path / "torn", config)
    assert curve(tmp_path / "torn") == curve(tmp_path / "whole")


def test_answers_that_cannot_be_repeated_are_asked_for_once(tiny_folder: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def elsewhere(
        model: Model, prompts: Sequence[list[int]], options: Sequence[GenerateOptions]
    ) -> list[list[Completion]]:
        if options[0].temperature > 0:
            asked.append(len(prompts))
        return write_answers(model, prompts, [dataclasses.replace(one, seed=None) for one in options])

    for stop in (3, 7):
        with pytest.raises(Crash):
            learn(fresh(tiny_folder), tmp_path, display=Stop(stop, Crash()), rollout=elsewhere)
    learn(fresh(tiny_folder), tmp_path, rollout=elsewhere)
    assert len(asked) == CONFIG.steps
    assert [line["step"] for line in curve(tmp_path) if "loss" in line] == list(range(1, 11))


def test_a_prompt_without_opinions_teaches_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    def silent(rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[float | None]:
        return [None] * len(answers)

    learn(fresh(tiny_folder), tmp_path, dataclasses.replace(CONFIG, steps=2), rewards={"silent": silent})
    assert [line["grad_norm"] for line in curve(tmp_path) if "loss" in line] == [0.0, 0.0]


# ---- settings --------------------------------------------------------------------------------------------------------


def test_without_a_reward_nothing_starts(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rewards is empty\. Name a rule such as exact, or give a function"):
        learn(fresh(tiny_folder), tmp_path, rewards={})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts_per_step": 0}, r"prompts_per_step is 0\. Use 1 or more"),
        ({"temperature": 0.0}, r"temperature is 0\.0\. Use a positive number: answers must differ"),
        ({"group_size": 1}, r"group_size is 1: an answer alone cannot be compared with its group\. Use 2 or more"),
        ({"group_size": 1, "baseline": "batch"}, r"group_size is 1: .*scale: batch"),
        ({"parallel": "fsdp"}, r"parallel is fsdp\. Each process writes answers with all weights: use ddp"),
        (
            {"lora": None, "policy": PolicyConfig(kl_weight=0.1)},
            r"policy\.kl_weight is given without lora\. The reference is the model without an adapter",
        ),
    ],
)
def test_settings_that_cannot_train_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GrpoConfig(**changes)
