"""Targets for sources (translation, summaries): encoder-decoders, taught with the right words before each place.

    metrics = train(model, encode_rows(rows, model, **config.row_options).items, validation, config, job)
    generate(model, ["…"], GenerateOptions(num_beams=4))

Rows are those of train/source_target.py, packed on both sides; models/generate.py asks the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.nn.functional import cross_entropy

from danlu.core.errors import ConfigError
from danlu.core.records import GenerateOptions
from danlu.data.packing import pack
from danlu.models.attend import PackedAttend, row_positions
from danlu.models.generate import generate, start_id
from danlu.models.model import Model
from danlu.train.batches import RowBatches
from danlu.train.method import prepare, rates
from danlu.train.run import Summed, TrainingRun
from danlu.train.samples import Ask, SampledConfig, Samples
from danlu.train.settings import Job, Usual
from danlu.train.source_target import SourceTarget, encoder_decoder
from danlu.train.texts import TuningOptim

Compare = Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]
"""Outputs and references → scores by name (evaluate/metrics)."""


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig(SampledConfig):
    """Fine-tune an encoder-decoder."""

    usual: ClassVar[Usual] = Usual(epochs=3.0, full_rate=5e-5, adapter_rate=5e-4)

    tokens_per_step: int = 2048
    """Most tokens of sources and targets in a batch; rows are packed into it."""
    max_source_tokens: int | None = None
    """Longer sources lose their end, and are counted; null for all that the model reads and a batch holds."""
    max_target_tokens: int = 128
    """Longer targets lose their end, and are counted."""
    source_prefix: str = ""
    """Put before every source, as T5 wants it ("summarize: ")."""
    target_prefix: str = ""
    """Put before every target."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over the vocabulary."""
    num_written: int = 16
    """Validation rows that the model writes targets for; 0 for none."""
    num_beams: int = 4
    """Beams it writes with."""
    optim: TuningOptim = field(default_factory=TuningOptim)
    """The optimiser."""
    max_validation_rows: int = 500
    """Validation rows used for the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tokens_per_step", "max_source_tokens", "max_target_tokens", "num_beams"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} is {value}.", "Use 1 or more.")
        if self.tokens_per_step < self.max_target_tokens + (self.max_source_tokens or 1):
            raise ConfigError(
                f"tokens_per_step {self.tokens_per_step} is less than a source and a target may have.",
                "A batch must hold at least one row.",
            )
        if self.num_written < 0:
            raise ConfigError(f"num_written is {self.num_written}.", "Use 0 or more.")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ConfigError(f"label_smoothing is {self.label_smoothing}.", "Use 0 or more, and less than 1.")

    @property
    def row_options(self) -> dict[str, Any]:
        """For ``encode_rows``."""
        return {
            "max_source_tokens": self.max_source_tokens or self.tokens_per_step - self.max_target_tokens,
            "max_target_tokens": self.max_target_tokens,
            "source_prefix": self.source_prefix,
            "target_prefix": self.target_prefix,
        }


def train(
    model: Model,
    train_rows: Sequence[SourceTarget],
    validation_rows: Sequence[SourceTarget],
    config: Seq2SeqConfig,
    job: Job,
    *,
    test_rows: Sequence[SourceTarget] = (),
    compare: Compare | None = None,
) -> dict[str, Any]:
    """Train ``model`` in place; returns metrics. ``test_rows`` are scored at the end; ``compare`` scores what it writes
    for validation and test rows."""
    assert train_rows, "train needs at least one row"
    torch.manual_seed(job.seed)  # pyright: ignore[reportUnknownMemberType]
    watched = validation_rows[: config.max_validation_rows]
    parameters = prepare(model, config)
    batches = RowBatches(
        train_rows,
        lambda item: item.num_tokens,
        seed=job.seed,
        tokens_per_step=config.tokens_per_step,
        micro_tokens=config.micro_tokens,
    )

    def loss_of(items: Sequence[SourceTarget]) -> Summed:
        return summed_loss(model, items, config.label_smoothing)

    samples = Samples(model, config, (Ask(row.source, row.text) for row in watched), prefix=config.source_prefix)
    tuned = rates(model.network, config)
    with TrainingRun(model, parameters, config, batches, job, rates=tuned, samples=samples) as run:
        for step in run.steps():
            step.accumulate(loss_of)
            step.update()
            if watched and step.validates:
                with step.validating():
                    found = score(model, watched, config, compare)
                step.report({f"validation_{name}": value for name, value in found.items()})
        asked = {"validation": watched, "test": test_rows}
        scores = {name: score(model, rows, config, compare) for name, rows in asked.items() if rows}
    metrics = run.metrics()
    return {
        **metrics,
        "train_rows": len(train_rows),
        "packing_fill": round(batches.fill, 4),
        "trainable_share": metrics["trainable_parameters"] / model.num_parameters(),
        **scores,
    }


def summed_loss(model: Model, items: Sequence[SourceTarget], smoothing: float = 0.0) -> Summed:
    """Cross-entropy in nats, summed over the targets' tokens. The shift by one happens here and nowhere else: what is
    read at a place is the token before it, the start token first."""
    network, device = encoder_decoder(model), model.device
    begin = start_id(model)
    lengths = [len(item.target) for item in items]
    sources = torch.tensor([index for item in items for index in item.source], device=device)
    before = torch.tensor([index for item in items for index in (begin, *item.target[:-1])], device=device)
    targets = torch.tensor([index for item in items for index in item.target], device=device)
    memory = network.encode(sources, [len(item.source) for item in items])
    hidden = network(before, row_positions(lengths).to(device), PackedAttend(lengths, device, memory=memory))
    logits = network.logits(hidden).float()  # (M, V)
    total = cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")
    return Summed(total, len(targets), sum(item.num_tokens for item in items))


@torch.no_grad()
def score(
    model: Model, items: Sequence[SourceTarget], config: Seq2SeqConfig, compare: Compare | None = None
) -> dict[str, float]:
    """Loss a token without smoothing; with ``compare`` also the scores of what the model writes, with beams, for the
    first ``num_written`` rows."""
    batches = pack([item.num_tokens for item in items], config.tokens_per_step, seed=0)
    sums = [summed_loss(model, [items[number] for number in batch]) for batch in batches]
    found = {"loss": sum(float(part.total) for part in sums) / sum(part.count for part in sums)}
    chosen = items[: config.num_written]
    if compare is None or not chosen:
        return found
    options = GenerateOptions(max_tokens=config.max_target_tokens, num_beams=config.num_beams)
    outputs = [answer.text for answer in generate(model, [item.source for item in chosen], options)]
    references = [config.target_prefix + item.text for item in chosen]
    return {**found, **{name: float(value) for name, value in compare(outputs, references).items()}}


plugin = train
