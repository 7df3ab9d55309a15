"""Reward models: one logit that is higher for the answer people chose (Bradley-Terry).

    model = with_head(load_model(path), NewScorer(), source=path)
    metrics = train(model, encode_rows(rows, model, 512).items, validation, RewardModelConfig(), job)
    Scorer(model)([{"prompt": "…"}], ["an answer"])

Any body will do: a language model reads conversations, an encoder a pair of texts. Rows are {prompt, chosen, rejected,
margin?}; train/rewards.py asks the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from danlu.core.errors import ConfigError, DataError
from danlu.models.encode import PACK_TOKENS, Row, packs
from danlu.models.model import Model
from danlu.models.pooling import Pooling
from danlu.train.batches import RowBatches
from danlu.train.lora import LoraConfig
from danlu.train.losses.preference import preference_parts, reward_loss
from danlu.train.method import prepare, rates
from danlu.train.rewards import rewards_of, scored_row
from danlu.train.run import Job, RunConfig, Summed, TrainingRun
from danlu.train.settings import Usual
from danlu.train.texts import Encoded, limit_of, training_head


@dataclass(frozen=True)
class Ranked:
    """Two answers to one prompt, as a reward model reads them."""

    chosen: Row
    rejected: Row
    margin: float = 0.0
    """How much better the first one is at least."""

    @property
    def num_tokens(self) -> int:
        """Tokens of both."""
        return len(self.chosen[0]) + len(self.rejected[0])


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig(RunConfig):
    """Learn which of two answers is better."""

    usual: ClassVar[Usual] = Usual(epochs=1.0, full_rate=1e-5, adapter_rate=1e-4)

    rows_per_step: int = 8
    """Pairs in a batch."""
    max_row_tokens: int = 512
    """Conversations that are longer are left out and counted; texts of a pair lose their end."""
    centring: float = 0.01
    """Weight of (chosen + rejected)², which keeps rewards around 0."""
    pooling: Pooling | None = None
    """Which tokens are read; null for what the family does."""
    lora: LoraConfig | None = field(default_factory=LoraConfig)
    """The adapter, the head always with it; null to train all weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rows_per_step", "max_row_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Use 1 or more.")
        if self.centring < 0:
            raise ConfigError(f"centring is {self.centring}.", "Use 0 or more.")


def encode_rows(rows: Iterable[Mapping[str, Any]], model: Model, max_row_tokens: int) -> Encoded[Ranked]:
    """Rows as ids. Left out: equal answers (``same``), and conversations that are too long (``too_long``)."""
    encoded, limit = Encoded[Ranked](), limit_of(model, max_row_tokens)
    for row in rows:
        (chosen, is_cut), (rejected, is_other_cut) = (
            scored_row(model, row, key, limit) for key in ("chosen", "rejected")
        )
        margin = row.get("margin") or 0.0
        if not isinstance(margin, int | float):
            raise DataError(f"A row has the margin {margin!r:.80}.", "A margin is a number.")
        if chosen == rejected:
            encoded.left_out["same"] += 1
        elif max(len(chosen[0]), len(rejected[0])) > limit:
            encoded.left_out["too_long"] += 1
        else:
            encoded.truncated += is_cut or is_other_cut
            encoded.items.append(Ranked(chosen, rejected, float(margin)))
    return encoded.refuse_none("a prompt and two different answers, chosen and rejected, within max_row_tokens")


def train(
    model: Model, train_rows: Sequence[Ranked], validation_rows: Sequence[Ranked], config: RewardModelConfig, job: Job
) -> dict[str, Any]:
    """Train ``model``, which has a head of one logit, in place; returns metrics."""
    assert train_rows, "train needs at least one row"
    torch.manual_seed(job.seed)  # pyright: ignore[reportUnknownMemberType]
    base_parameters = model.num_parameters()
    watched = validation_rows[: config.max_validation_rows]
    parameters = prepare(model, training_head(config))
    batches = RowBatches(
        train_rows,
        lambda pair: pair.num_tokens,
        seed=job.seed,
        rows_per_step=config.rows_per_step,
        micro_tokens=config.micro_tokens,
    )

    def loss_of(pairs: Sequence[Ranked]) -> Summed:
        chosen, rejected = both_rewards(model, pairs)
        margins = torch.tensor([pair.margin for pair in pairs], device=chosen.device)
        total = reward_loss(chosen, rejected, margin=margins, centring=config.centring)
        num_tokens = sum(pair.num_tokens for pair in pairs)
        return Summed(total, len(pairs), num_tokens, preference_parts(chosen, rejected))

    def score(pairs: Sequence[Ranked]) -> dict[str, float]:
        sums: dict[str, float] = {}
        for pack in packs([pair.num_tokens for pair in pairs], PACK_TOKENS):
            found = loss_of([pairs[i] for i in pack])
            for name, value in {"loss": found.total, **found.parts}.items():
                sums[f"validation_{name}"] = sums.get(f"validation_{name}", 0.0) + float(value)
        return {name: value / len(pairs) for name, value in sums.items()}

    with TrainingRun(model, parameters, config, batches, job, rates=rates(model.network, config)) as run:
        for step in run.steps():
            step.accumulate(loss_of)
            step.update()
            if watched and step.validates:
                with step.validating():
                    step.report(score(watched))
    metrics = run.metrics()
    return {
        **metrics,
        "train_rows": len(train_rows),
        "trainable_share": metrics["trainable_parameters"] / base_parameters,
        "validation": {name: run.curve.values(name)[-1] for name in _VALIDATED if run.curve.values(name)},
    }


_VALIDATED = ("validation_loss", "validation_rewards/accuracy", "validation_rewards/margin")


def both_rewards(model: Model, pairs: Sequence[Ranked]) -> tuple[Tensor, Tensor]:
    """Rewards (P,) of the chosen answers, and of the others."""
    rewards = rewards_of(model, [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)])
    return rewards[: len(pairs)], rewards[len(pairs) :]


plugin = train
