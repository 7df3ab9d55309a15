"""Learning from rewards: a policy tries several answers to each prompt, and the better ones become likelier.

    prompts = encode_prompts(rows, model.chat, config.max_prompt_tokens).items
    metrics = train(model, prompts, [], GrpoConfig(rewards=(RewardConfig(exact=Exact()),)), job)

GRPO (Shao et al. 2024), DAPO and Dr. GRPO by settings of ``policy``; REINFORCE and bandits (one answer, one reward)
with ``baseline: batch`` or leave_one_out. How answers are written is an argument; what they are worth is said by rules
of the config and by functions that are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from danlu.core.errors import ConfigError
from danlu.core.records import GenerateOptions
from danlu.models.model import Model
from danlu.train.batches import RowBatches
from danlu.train.lora import LoraConfig
from danlu.train.losses.completions import read_completions
from danlu.train.losses.policy import Baseline, PolicyConfig, Scale, advantages, policy_loss, reduce
from danlu.train.method import prepare, rates
from danlu.train.rewards import Reward, RewardConfig, weighted
from danlu.train.rollout import Asked, Rollout, Try, TryBatches, Trying, describe, write_answers
from danlu.train.run import Job, Summed, TrainingRun
from danlu.train.samples import Ask, SampledConfig, Samples
from danlu.train.settings import Usual


@dataclass(frozen=True, kw_only=True)
class GrpoConfig(SampledConfig):
    """Learn from the rewards of tried answers."""

    usual: ClassVar[Usual] = Usual(steps=100, full_rate=5e-6, adapter_rate=5e-5)

    rewards: tuple[RewardConfig, ...] = ()
    """Rules that value answers; their weighted values are added."""
    prompts_per_step: int = 4
    """Prompts in a rollout."""
    group_size: int = 4
    """Answers to each prompt."""
    max_prompt_tokens: int = 256
    """Longer prompts are left out and counted."""
    max_answer_tokens: int = 64
    """Answers end here at the latest."""
    temperature: float = 1.0
    """How freely answers are drawn; what is learnt is the policy at this temperature."""
    updates_per_rollout: int = 1
    """Steps that learn from the same answers; clipping matters from the second on."""
    baseline: Baseline = "group"
    """What a reward is compared with: group, leave_one_out, batch."""
    scale: Scale = "group"
    """What the difference is divided by: group, batch, none."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """How far an answer moves the policy."""
    lora: LoraConfig | None = field(default_factory=LoraConfig)
    """The adapter; null to train all weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompts_per_step", "group_size", "max_prompt_tokens", "max_answer_tokens", "updates_per_rollout"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Use 1 or more.")
        if self.temperature <= 0:
            raise ConfigError(f"temperature is {self.temperature}.", "Use a positive number: answers must differ.")
        if self.group_size == 1 and (self.baseline != "batch" or self.scale == "group"):
            raise ConfigError(
                "group_size is 1: an answer alone cannot be compared with its group.",
                "Use 2 or more, or baseline: batch and scale: batch.",
            )
        if self.parallel == "fsdp":
            raise ConfigError("parallel is fsdp.", "Each process writes answers with all weights: use ddp.")
        if self.policy.kl_weight and self.lora is None:
            raise ConfigError(
                "policy.kl_weight is given without lora.", "The reference is the model without an adapter."
            )


def train(
    model: Model,
    prompts: Sequence[Asked],
    validation: Sequence[Asked],
    config: GrpoConfig,
    job: Job,
    *,
    rewards: Mapping[str, Reward] | None = None,
    rollout: Rollout = write_answers,
) -> dict[str, Any]:
    """Train ``model`` in place; returns metrics. ``rewards`` are functions by name, added to the config's rules."""
    assert prompts, "train needs at least one prompt"
    torch.manual_seed(job.seed)  # pyright: ignore[reportUnknownMemberType]
    base_parameters = model.num_parameters()
    parameters = prepare(model, config)
    order = RowBatches(prompts, lambda one: len(one.ids), seed=job.seed, rows_per_step=config.prompts_per_step)
    trying = Trying(
        model=model,
        order=order,
        options=GenerateOptions(
            max_tokens=config.max_answer_tokens, temperature=config.temperature, n=config.group_size
        ),
        rewards=weighted(config.rewards, rewards or {}),
        rollout=rollout,
        job=job,
        needs_old=config.updates_per_rollout > 1,
        needs_reference=config.policy.kl_weight > 0,
    )
    tokens_each = sum(len(one.ids) for one in prompts) // len(prompts) + config.max_answer_tokens
    batches = TryBatches(
        per_epoch=order.per_epoch * config.updates_per_rollout,
        tokens_per_step=config.prompts_per_step * config.group_size * tokens_each,
        micro_tokens=config.micro_tokens,
    )
    watched = validation[: config.max_validation_rows]

    def loss_of(items: Sequence[tuple[Try, float]]) -> Summed:
        return _loss(model, items, config)

    samples = Samples(model, config, (Ask(one.ids) for one in watched))
    tuned = rates(model.network, config)
    with TrainingRun(model, parameters, config, batches, job, rates=tuned, samples=samples) as run:
        for step in run.steps():
            groups = trying.at((step.number - 1) // config.updates_per_rollout)
            batches.items = _compared(groups, config)
            run.curve.add({"step": step.number, **describe(groups)})
            step.accumulate(loss_of)
            step.update()
            if watched and step.validates:
                with step.validating():
                    step.report(_validate(trying, watched))
    found = {name: run.curve.values(name) for name in ("reward", "validation_reward")}
    metrics = run.metrics()
    return {
        **metrics,
        "prompts": len(prompts),
        "first_reward": found["reward"][0] if found["reward"] else None,
        "last_reward": found["reward"][-1] if found["reward"] else None,
        "validation_reward": found["validation_reward"][-1] if found["validation_reward"] else None,
        "trainable_share": metrics["trainable_parameters"] / base_parameters,
    }


def _compared(groups: Sequence[Sequence[Try]], config: GrpoConfig) -> list[tuple[Try, float]]:
    """Every answer with its advantage; prompts may have different numbers of answers."""
    widest = max(len(group) for group in groups)
    table = torch.full((len(groups), widest), torch.nan, dtype=torch.float64)
    for number, group in enumerate(groups):
        table[number, : len(group)] = torch.tensor([tried.reward for tried in group], dtype=torch.float64)
    found = advantages(table, baseline=config.baseline, scale=config.scale)
    return [
        (tried, float(found[number, place])) for number, group in enumerate(groups) for place, tried in enumerate(group)
    ]


def _loss(model: Model, items: Sequence[tuple[Try, float]], config: GrpoConfig) -> Summed:
    read = read_completions(model.network, [tried.answer for tried, _ in items], temperature=config.temperature)
    logprobs = read.tokens.logprobs

    def joined(values: Sequence[list[float] | None]) -> Tensor | None:
        if any(value is None for value in values):
            return None
        return torch.tensor([x for value in values for x in value or ()], dtype=logprobs.dtype, device=logprobs.device)

    gains = torch.tensor([gain for _, gain in items], dtype=logprobs.dtype, device=logprobs.device)
    found = policy_loss(
        logprobs,
        read.counts,
        gains,
        config.policy,
        old=joined([tried.old for tried, _ in items]),
        reference=joined([tried.reference for tried, _ in items]),
        longest=config.max_answer_tokens,
    )
    entropy = reduce(read.tokens.entropies, read.counts, config.policy)
    return Summed(found.total, found.count, read.num_tokens, {**found.parts, "entropy": entropy})


def _validate(trying: Trying, watched: Sequence[Asked]) -> dict[str, float]:
    """Rewards of the likeliest answers to prompts that are not trained on; the loss is what is missing."""
    likeliest = replace(trying.options, temperature=0.0, n=1)
    told = describe(replace(trying, options=likeliest, needs_old=False, needs_reference=False).groups(watched))
    return {"validation_loss": -told["reward"], "validation_reward": told["reward"]}


plugin = train
