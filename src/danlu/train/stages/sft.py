"""Supervised fine-tuning on conversations: LoRA adapters, packed batches, loss on the answers only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from danlu.core.errors import ConfigError, TrainError
from danlu.data.packing import pack
from danlu.models.model import Model
from danlu.text.chat import ChatFormat, RenderedChat, conversation
from danlu.train.batches import RowBatches
from danlu.train.lora import LoraConfig
from danlu.train.loss import PackedBatch, collate, summed_loss
from danlu.train.method import prepare, rates
from danlu.train.run import Job, Summed, TrainingRun
from danlu.train.samples import SampledConfig, Samples, asks_of_chats
from danlu.train.settings import Usual


@dataclass(frozen=True, kw_only=True)
class SftConfig(SampledConfig):
    """Fine-tune on conversations with LoRA."""

    usual: ClassVar[Usual] = Usual(steps=100, full_rate=1e-4, adapter_rate=2e-3)

    tokens_per_step: int = 1024
    """Most tokens in a batch; rows are packed into it."""
    max_row_tokens: int = 512
    """Longer rows are left out and counted."""
    lora: LoraConfig | None = field(default_factory=LoraConfig)
    """The adapter; null to train all weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tokens_per_step", "max_row_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Use 1 or more.")
        if self.max_row_tokens > self.tokens_per_step:
            raise ConfigError(
                f"max_row_tokens {self.max_row_tokens} is more than tokens_per_step {self.tokens_per_step}.",
                "A batch must hold at least one row.",
            )


@dataclass(frozen=True)
class Rows:
    """Encoded conversations and how many were left out, by reason."""

    encoded: list[RenderedChat]
    left_out: dict[str, int]


def encode_rows(rows: Iterable[Mapping[str, Any]], chat: ChatFormat, max_tokens: int) -> Rows:
    """Rows with ``messages`` as ids and answer masks.

    Left out: rows too long (``too_long``) or without a token to learn (``no_answer``). Raises TrainError when no row
    is left, or when no answer ends with the token that ends answers in serving: the model would never stop.
    """
    encoded: list[RenderedChat] = []
    left_out = {"too_long": 0, "no_answer": 0}
    learns_to_stop = False
    for row in rows:
        rendered = chat.render(conversation(row), add_generation_prompt=False)
        if len(rendered.ids) > max_tokens:
            left_out["too_long"] += 1
        elif not any(rendered.is_answer[1:]):
            left_out["no_answer"] += 1
        else:
            encoded.append(rendered)
            pairs = zip(rendered.ids, rendered.is_answer, strict=True)
            learns_to_stop |= any(learnt and i in chat.tokenizer.end_ids for i, learnt in pairs)
    if not encoded:
        raise TrainError(
            f"No row can be trained on: {left_out['too_long']} are longer than {max_tokens} tokens, "
            f"{left_out['no_answer']} have no assistant answer.",
            "Look at the data, or raise max_row_tokens.",
        )
    if not learns_to_stop:
        raise TrainError(
            "No answer ends with the token that ends answers, so the model would never learn to stop.",
            f"Check the chat template; the end token is {', '.join(chat.tokenizer.end_tokens)}.",
        )
    return Rows(encoded, {reason: count for reason, count in left_out.items() if count})


def finetune(
    model: Model, train: Sequence[RenderedChat], validation: Sequence[RenderedChat], config: SftConfig, job: Job
) -> dict[str, Any]:
    """Train adapters on ``model`` in place; returns metrics."""
    assert train, "finetune needs at least one row"
    torch.manual_seed(job.seed)  # pyright: ignore[reportUnknownMemberType]
    base_parameters = model.num_parameters()
    parameters = prepare(model, config)
    batches = RowBatches(
        train,
        lambda row: len(row.ids),
        seed=job.seed,
        tokens_per_step=config.tokens_per_step,
        micro_tokens=config.micro_tokens,
    )
    held_out = _validation_batches(validation[: config.max_validation_rows], config.tokens_per_step)

    def loss_of(rows: Sequence[RenderedChat]) -> Summed:
        batch = collate(rows)
        return Summed(summed_loss(model.network, batch), batch.targets.shape[0], batch.num_tokens)

    samples = Samples(model, config, asks_of_chats(model, validation))
    tuned = rates(model.network, config)
    with TrainingRun(model, parameters, config, batches, job, rates=tuned, samples=samples) as run:
        for step in run.steps():
            step.accumulate(loss_of)
            step.update()
            if held_out and step.validates:
                with step.validating():
                    step.report({"validation_loss": _validate(model, held_out)})
    metrics = run.metrics()
    return {
        **metrics,
        "train_rows": len(train),
        "packing_fill": round(batches.fill, 4),
        "trainable_share": metrics["trainable_parameters"] / base_parameters,
    }


def _validation_batches(rows: Sequence[RenderedChat], budget: int) -> list[PackedBatch]:
    return [collate([rows[i] for i in batch]) for batch in pack([len(row.ids) for row in rows], budget, seed=0)]


def _validate(model: Model, batches: Sequence[PackedBatch]) -> float:
    """Mean loss in nats a supervised token."""
    total = sum(float(summed_loss(model.network, batch)) for batch in batches)
    return total / sum(int(batch.targets.shape[0]) for batch in batches)


plugin = finetune
