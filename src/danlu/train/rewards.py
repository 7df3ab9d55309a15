"""What an answer is worth: rules with a name, a trained reward model, or any function of rows and answers.

A reward reads the rows that prompts came from, so a rule can look up the right answer there. None means that it has no
opinion. Knows no policy and no loss.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from danlu.core.errors import ConfigError, DataError
from danlu.models.encode import PACK_TOKENS, Row, packs
from danlu.models.model import Model
from danlu.train.labelled import classify_head
from danlu.train.preferences import encode_answer
from danlu.train.texts import encode_text, limit_of, read_rows


class Reward(Protocol):
    """Values answers."""

    def __call__(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> Sequence[float | None]:
        """One number for each answer to the prompt of its row; None for no opinion."""
        ...


@dataclass(frozen=True, kw_only=True)
class Exact:
    """1 when the answer is the right one, else 0."""

    column: str = "answer"
    """Where the row has the right answer."""
    pattern: str | None = None
    """What of the answer is compared: the first group of this expression where it matches last; null for all."""

    def __post_init__(self) -> None:
        if self.pattern is not None and _compiled(self.pattern, "exact.pattern").groups < 1:
            raise ConfigError(f"exact.pattern is {self.pattern!r}.", "Put what is compared in a group: ( ).")

    def __call__(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[float | None]:
        return [self._one(row, answer) for row, answer in zip(rows, answers, strict=True)]

    def _one(self, row: Mapping[str, Any], answer: str) -> float:
        if self.column not in row:
            raise DataError(f"A row has no {self.column!r}.", "Name the column with the right answers in exact.column.")
        if self.pattern is not None:
            found = list(re.finditer(self.pattern, answer))
            answer = (found[-1][1] or "") if found else ""
        return float(answer.strip() == str(row[self.column]).strip())


@dataclass(frozen=True, kw_only=True)
class Regex:
    """1 when the answer matches, else 0."""

    pattern: str
    """A regular expression that is searched for."""

    def __post_init__(self) -> None:
        _compiled(self.pattern, "regex.pattern")

    def __call__(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[float | None]:
        return [float(re.search(self.pattern, answer) is not None) for answer in answers]


@dataclass(frozen=True, kw_only=True)
class Length:
    """1 at the wanted number of characters, falling to 0 at none and at twice as many."""

    characters: int
    """How long an answer should be."""

    def __post_init__(self) -> None:
        if self.characters < 1:
            raise ConfigError(f"length.characters is {self.characters}.", "Use 1 or more.")

    def __call__(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[float | None]:
        return [max(0.0, 1.0 - abs(len(answer.strip()) / self.characters - 1.0)) for answer in answers]


@dataclass(frozen=True, kw_only=True)
class ValidJson:
    """1 when the answer is a JSON object with these keys, else 0; half a point for other JSON."""

    keys: tuple[str, ...] = ()
    """What the object must have."""

    def __call__(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[float | None]:
        return [self._one(answer) for answer in answers]

    def _one(self, answer: str) -> float:
        try:
            found = json.loads(answer)
        except (ValueError, RecursionError):
            return 0.0
        return 1.0 if isinstance(found, dict) and set(self.keys) <= found.keys() else 0.5


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """One rule and its weight."""

    exact: Exact | None = None
    """The right answer, from a column of the row."""
    regex: Regex | None = None
    """A pattern to match."""
    length: Length | None = None
    """A wanted length."""
    json: ValidJson | None = None
    """A JSON object."""
    weight: float = 1.0
    """It is multiplied by this before all are added."""

    def __post_init__(self) -> None:
        given = [name for name in _RULES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(f"A reward names {len(given)} rules.", f"Give one of {', '.join(_RULES)}.")
        if not math.isfinite(self.weight):
            raise ConfigError(f"weight is {self.weight}.", "Use a number.")

    @property
    def name(self) -> str:
        """Of the rule that is given."""
        return next(name for name in _RULES if getattr(self, name) is not None)

    @property
    def rule(self) -> Reward:
        """The one that is given."""
        return getattr(self, self.name)


_RULES = ("exact", "regex", "length", "json")


def columns_read(rules: Sequence[RewardConfig]) -> set[str]:
    """Columns of rows that the rules cannot do without."""
    return {rule.exact.column for rule in rules if rule.exact is not None}


def weighted(rules: Sequence[RewardConfig], functions: Mapping[str, Reward]) -> dict[str, tuple[Reward, float]]:
    """Rewards by name, with their weights: rules are called as in the config, the second of a kind gets a number.

    Raises ConfigError when there is none.
    """
    found: dict[str, tuple[Reward, float]] = {name: (reward, 1.0) for name, reward in functions.items()}
    for rule in rules:
        same = sum(name.partition("_")[0] == rule.name for name in found)
        found[f"{rule.name}_{same + 1}" if same else rule.name] = (rule.rule, rule.weight)
    if not found:
        raise ConfigError("rewards is empty.", "Name a rule such as exact, or give a function.")
    return found


@dataclass(frozen=True)
class Scorer:
    """A reward model's opinion (train/stages/reward)."""

    model: Model
    max_tokens: int | None = None
    """Longer rows get no reward; None for all that the model reads."""

    def __call__(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[float | None]:
        limit = limit_of(self.model, self.max_tokens)
        asked = [{"prompt": row.get("prompt"), "chosen": answer} for row, answer in zip(rows, answers, strict=True)]
        read = [scored_row(self.model, row, "chosen", limit)[0] for row in asked]
        fitting = [place for place, row in enumerate(read) if len(row[0]) <= limit]
        found: list[float | None] = [None] * len(read)
        with torch.inference_mode():
            for pack in packs([len(read[place][0]) for place in fitting], PACK_TOKENS):
                values = rewards_of(self.model, [read[fitting[i]] for i in pack])
                for i, value in zip(pack, values.tolist(), strict=True):
                    found[fitting[i]] = value
        return found


def scored_row(model: Model, row: Mapping[str, Any], key: str, limit: int) -> tuple[Row, bool]:
    """Prompt and answer as a reward model reads them: a conversation where it has a template, else a pair of texts,
    which loses its end beyond ``limit``; and whether it did."""
    if model.chat.source is not None:
        ids = encode_answer(row, key, model.chat).ids
        return (ids, [0] * len(ids)), False
    prompt, answer = row.get("prompt"), row.get(key)
    if not isinstance(prompt, str) or not isinstance(answer, str):
        raise DataError(
            f"A row has prompt {prompt!r:.40} and {key} {answer!r:.40}.",
            "Give both as texts: this model has no chat template.",
        )
    return encode_text(model, prompt, answer, limit)


def rewards_of(model: Model, rows: Sequence[Row]) -> Tensor:
    """What a model with a head of one logit gives rows: fp32 (B,), with gradients where these are on."""
    return classify_head(model)(*read_rows(model, rows)).squeeze(1).float()


def _compiled(pattern: str, name: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{name} is {pattern!r}, which is no regular expression: {error}.", "Mend it.") from error
