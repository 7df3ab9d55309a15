"""Answers that a policy tries, with what they were worth: written, rewarded, and kept for a run that goes on.

Which prompts a rollout has, and the random numbers it draws, come from the seed and its number. What was written is
kept in the run's work folder and read again when a run goes on, so even a rollout function that is not repeatable
(another server, an environment) is asked only once. Knows no loss and no optimiser.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from danlu.core.errors import DataError
from danlu.core.files import read_json_object, sha256_json, write_json
from danlu.core.records import Completion, GenerateOptions, Message
from danlu.models.generate import REFERENCE_BATCH, start, write
from danlu.models.model import Model
from danlu.text.chat import ChatFormat, RenderedChat, conversation
from danlu.train.batches import RowBatches, split_rows
from danlu.train.losses.completions import read_completions
from danlu.train.reference import adapters_off
from danlu.train.rewards import Reward
from danlu.train.settings import Job
from danlu.train.texts import Encoded


class Rollout(Protocol):
    """Writes answers: the model's own generation, or an engine, a server, an environment with tools."""

    def __call__(
        self, model: Model, prompts: Sequence[list[int]], options: Sequence[GenerateOptions]
    ) -> list[list[Completion]]:
        """``options[i].n`` answers to ``prompts[i]``, with their ``token_ids``, end token included."""
        ...


@dataclass(frozen=True)
class Asked:
    """A prompt, and the row it comes from, which rewards may read."""

    ids: list[int]
    row: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The prompt as one text."""
        prompt = self.row["prompt"]
        return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


@dataclass(frozen=True)
class Try:
    """One answer that was written."""

    answer: RenderedChat
    text: str
    rewards: dict[str, float | None]
    """Of each reward by name, weighted; None for no opinion."""
    is_finished: bool
    """Whether it ended by itself, not at the limit."""
    old: list[float] | None = None
    """Log-probabilities of its tokens when it was written, where they are needed."""
    reference: list[float] | None = None
    """Those of the model before training."""

    @property
    def reward(self) -> float:
        """All added; NaN when none has an opinion."""
        given = [value for value in self.rewards.values() if value is not None]
        return sum(given) if given else math.nan


def encode_prompts(rows: Iterable[Mapping[str, Any]], chat: ChatFormat, max_tokens: int) -> Encoded[Asked]:
    """Rows of {prompt, …} or {messages, …}, of which the last answer is left out; left out: ``too_long``."""
    encoded = Encoded[Asked]()
    for row in rows:
        prompt = row.get("prompt")
        if isinstance(prompt, str) and chat.source is None:
            ids = chat.tokenizer.encode(prompt)
        else:
            messages = _asking(row)
            ids = chat.render(messages, add_generation_prompt=True).ids
            row = {**row, "prompt": messages}
        if len(ids) > max_tokens:
            encoded.left_out["too_long"] += 1
        else:
            encoded.items.append(Asked(ids, row))
    return encoded.refuse_none("a prompt within max_prompt_tokens")


def _asking(row: Mapping[str, Any]) -> list[Message]:
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        return cast("list[Message]", [{"role": "user", "content": prompt}])
    messages = conversation({"messages": prompt} if prompt is not None else row)
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    if not asked:
        raise DataError("A row has an answer but nothing that asks for it.", "Give a prompt, or a user message.")
    return asked


def write_answers(
    model: Model, prompts: Sequence[list[int]], options: Sequence[GenerateOptions]
) -> list[list[Completion]]:
    """The model's own answers, a batch of prompts at a time."""
    together = max(1, REFERENCE_BATCH // max(one.n for one in options))
    answers: list[list[Completion]] = []
    for first in range(0, len(prompts), together):
        chosen = slice(first, first + together)
        writings = [start(model, ids, one) for ids, one in zip(prompts[chosen], options[chosen], strict=True)]
        samples = [[writing, *(writing.again(n) for n in range(1, writing.options.n))] for writing in writings]
        for _ in write(model, samples):
            pass
        answers += [[writing.completion() for writing in group] for group in samples]
    return answers


@dataclass(frozen=True, kw_only=True)
class Trying:
    """Makes rollouts: prompts in, answers with their rewards out."""

    model: Model
    order: RowBatches[Asked]
    """Which prompts each rollout has."""
    options: GenerateOptions
    """How answers are written, ``n`` of them to a prompt; the seed is set for each."""
    rewards: Mapping[str, tuple[Reward, float]]
    """By name, with their weights."""
    rollout: Rollout
    job: Job
    needs_old: bool = False
    """Whether answers are learnt from after the policy has moved."""
    needs_reference: bool = False
    """Whether the policy is held to the model before training."""

    def at(self, number: int) -> list[list[Try]]:
        """The answers of rollout ``number``, a group for each prompt; every process has all of them."""
        (asked,) = self.order.at(number)
        seed = (self.job.seed * 1_000_003 + number) * 1_009
        path = self.job.work / "rollouts" / f"{number:08d}.json"
        key = sha256_json([[one.ids for one in asked], vars(self.options), seed, sorted(self.rewards)])
        world = self.job.world
        groups = world.share_json(_kept(path, key) if world.is_first else None)
        if groups is None:
            mine = range(world.rank, len(asked), world.size)
            parts = world.gather_json(self._write([asked[i] for i in mine], [seed + i for i in mine]))
            groups = [parts[i % world.size][i // world.size] for i in range(len(asked))]
            if world.is_first:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, {"key": key, "groups": groups})
        return [
            [self._try(one, told) for told in group] for one, group in zip(asked, groups, strict=True)
        ]  # fmt: skip

    def groups(self, asked: Sequence[Asked]) -> list[list[Try]]:
        """Answers to any prompts, not kept: for validation."""
        told = self._write(asked, [self.job.seed + i for i in range(len(asked))])
        return [[self._try(one, each) for each in group] for one, group in zip(asked, told, strict=True)]

    def _write(self, asked: Sequence[Asked], seeds: Sequence[int]) -> list[list[dict[str, Any]]]:
        """Answers to some prompts as plain values."""
        if not asked:
            return []
        network = self.model.network
        was_training = network.training
        network.eval()
        options = [replace(self.options, seed=seed) for seed in seeds]
        written = self.rollout(self.model, [one.ids for one in asked], options)
        tries = [
            {"ids": list(found.token_ids), "text": found.text, "is_finished": found.finish_reason == "stop"}
            for group in written
            for found in group
        ]
        sources = [one for one, group in zip(asked, written, strict=True) for _ in group]
        self._value(tries, sources)
        answers = [_answer(one.ids, told["ids"]) for one, told in zip(sources, tries, strict=True)]
        if self.needs_old:
            self._read(answers, tries, "old")
        if self.needs_reference:
            with adapters_off(network):
                self._read(answers, tries, "reference")
        network.train(was_training)
        waiting = iter(tries)
        return [[next(waiting) for _ in group] for group in written]

    def _value(self, tries: Sequence[dict[str, Any]], sources: Sequence[Asked]) -> None:
        rows, texts = [one.row for one in sources], [told["text"] for told in tries]
        found = {name: reward(rows, texts) for name, (reward, _) in self.rewards.items()}
        for place, told in enumerate(tries):
            told["rewards"] = {
                name: None if (value := found[name][place]) is None else float(value) * weight
                for name, (_, weight) in self.rewards.items()
            }

    @torch.no_grad()
    def _read(self, answers: Sequence[RenderedChat], tries: Sequence[dict[str, Any]], name: str) -> None:
        """Note what the network as it is now says of each token."""
        for first in range(0, len(answers), REFERENCE_BATCH):
            some = slice(first, first + REFERENCE_BATCH)
            read = read_completions(self.model.network, answers[some], temperature=self.options.temperature)
            for told, values in zip(tries[some], read.tokens.logprobs.split(list(read.counts)), strict=True):
                told[name] = values.tolist()

    def _try(self, asked: Asked, told: Mapping[str, Any]) -> Try:
        answer = _answer(asked.ids, told["ids"])
        others = {name: told.get(name) for name in ("old", "reference")}
        return Try(answer, told["text"], told["rewards"], told["is_finished"], **others)


@dataclass
class TryBatches:
    """The answers of the step at hand, spread over processes and micro-batches."""

    per_epoch: int
    """See ``Batches``."""
    tokens_per_step: int
    """See ``Batches``."""
    micro_tokens: int | None
    items: Sequence[tuple[Try, float]] = ()
    """Each with its advantage; the loop sets them before the step."""

    def at(self, step: int, rank: int = 0, world_size: int = 1) -> list[list[tuple[Try, float]]]:
        """See ``Batches.at``."""
        lengths = [len(tried.answer.ids) for tried, _ in self.items]
        parts = split_rows(range(len(self.items)), lengths, self.micro_tokens, world_size)
        return [[self.items[i] for i in part] for part in parts[rank::world_size]]


def describe(groups: Sequence[Sequence[Try]]) -> dict[str, float]:
    """A rollout in numbers, for the curve."""
    tries = [tried for group in groups for tried in group]
    given = [tried.reward for tried in tries if not math.isnan(tried.reward)]
    found = {
        "reward": statistics.fmean(given) if given else math.nan,
        "reward_spread": statistics.pstdev(given) if given else math.nan,
        "equal_groups": statistics.fmean(len({tried.reward for tried in group}) == 1 for group in groups),
        "answer_tokens": statistics.fmean(sum(tried.answer.is_answer) for tried in tries),
        "finished": statistics.fmean(tried.is_finished for tried in tries),
    }
    for name in tries[0].rewards:
        told = [value for tried in tries if (value := tried.rewards[name]) is not None]
        found[f"rewards/{name}"] = statistics.fmean(told) if told else math.nan
    return found


def _answer(prompt: list[int], ids: list[int]) -> RenderedChat:
    return RenderedChat([*prompt, *ids], [False] * len(prompt) + [True] * len(ids))


def _kept(path: Path, key: str) -> Any:
    """The groups of a rollout that was made before, if it was the same one."""
    kept = read_json_object(path) if path.is_file() else {}
    return kept["groups"] if kept.get("key") == key else None
