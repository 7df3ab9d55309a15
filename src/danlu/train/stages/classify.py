"""Labels for texts, pairs of texts or images: a new head on any body, all of it trained, or an adapter.

    model = with_head(load_model(path, precision="fp32"), labels_of(rows), source=path)
    metrics = train(model, encode_rows(rows, model).items, validation, ClassifierConfig(), job)
    classify(model, ["…"])

Rows and labels are those of train/labelled.py, heads those of models/rehead.py; models/encode.py asks the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from danlu.core.errors import ConfigError, TrainError
from danlu.models.encode import PACK_TOKENS, packs
from danlu.models.images import ImageProcessor
from danlu.models.model import Model
from danlu.models.pair import read_images
from danlu.models.pooling import Pooling
from danlu.train.batches import RowBatches
from danlu.train.decision import best_lean
from danlu.train.labelled import Labelled, balanced_weights, classify_head
from danlu.train.measures import label_scores, rank_correlation, set_scores
from danlu.train.method import prepare, rates
from danlu.train.run import Summed, TrainingRun
from danlu.train.settings import Job, RunConfig, Usual
from danlu.train.sharded import like, mine
from danlu.train.texts import TuningOptim, read_rows, training_head


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(RunConfig):
    """Fine-tune a model to tell labels."""

    usual: ClassVar[Usual] = Usual(epochs=3.0, full_rate=2e-5, adapter_rate=2e-4)

    rows_per_step: int = 16
    """Rows in a batch."""
    max_row_tokens: int | None = None
    """Longer texts lose their end (of a pair, the longer does), and are counted; null for all that the model reads."""
    labels: tuple[str, ...] = ()
    """Names of the labels, in the order of the logits; left out, those of the training rows."""
    pooling: Pooling | None = None
    """Which tokens are read; null for what the family does."""
    class_weights: Literal["equal", "balanced"] = "equal"
    """balanced: rows of rare labels count more, so that every label counts the same."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over all labels."""
    decision: Literal["likeliest", "macro_f1"] = "likeliest"
    """macro_f1: when done, the head's bias moves towards rare labels as far as suits the validation rows best."""
    optim: TuningOptim = field(default_factory=TuningOptim)
    """The optimiser."""
    max_validation_rows: int = 2000
    """Validation rows used."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rows_per_step", "max_row_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} is {value}.", "Use 1 or more.")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ConfigError(f"label_smoothing is {self.label_smoothing}.", "Use 0 or more, and less than 1.")


def train(
    model: Model,
    train_rows: Sequence[Labelled],
    validation_rows: Sequence[Labelled],
    config: ClassifierConfig,
    job: Job,
    *,
    test_rows: Sequence[Labelled] = (),
    images: ImageProcessor | None = None,
) -> dict[str, Any]:
    """Train ``model`` in place; returns metrics. ``test_rows`` are scored at the end; ``images`` prepares images
    for a model that reads them."""
    assert train_rows, "train needs at least one row"
    torch.manual_seed(job.seed)  # pyright: ignore[reportUnknownMemberType]
    labels, is_multi = classify_head(model).config.labels, classify_head(model).config.multi_label
    watched, smoothing = validation_rows[: config.max_validation_rows], config.label_smoothing
    weights = balanced_weights(train_rows, multi_label=is_multi) if config.class_weights == "balanced" else None
    parameters = prepare(model, training_head(config))
    if config.decision == "macro_f1":
        _check_decision(model, parameters, validation_rows)
    batches = RowBatches(
        train_rows,
        lambda item: item.num_tokens,
        seed=job.seed,
        rows_per_step=config.rows_per_step,
        micro_tokens=config.micro_tokens,
    )

    def loss_of(items: Sequence[Labelled]) -> Summed:
        logits, targets = logits_of(model, items, images), targets_of(items).to(model.device)
        total, count = summed_loss(logits, targets, multi_label=is_multi, weights=weights, smoothing=smoothing)
        return Summed(total, count, sum(item.num_tokens for item in items))

    with TrainingRun(model, parameters, config, batches, job, rates=rates(model.network, config)) as run:
        for step in run.steps():
            step.accumulate(loss_of)
            step.update()
            if watched and step.validates:
                with step.validating():
                    found = score(model, watched, images)
                step.report({f"validation_{name}": value for name, value in found.items() if name != "per_label"})
        lean = {"lean": _lean(run, train_rows, watched, images)} if config.decision == "macro_f1" else {}
        asked = {"validation": watched, "test": test_rows}
        scores = {name: score(model, rows, images) for name, rows in asked.items() if rows}
    metrics = run.metrics()
    return {
        **metrics,
        "train_rows": len(train_rows),
        "labels": list(labels),
        "trainable_share": metrics["trainable_parameters"] / model.num_parameters(),
        **lean,
        **scores,
    }


def logits_of(model: Model, items: Sequence[Labelled], images: ImageProcessor | None = None) -> Tensor:
    """What the head says of rows: (B, C)."""
    texts = [item.row for item in items if not isinstance(item.row, Path)]
    if texts:
        hidden, lengths = read_rows(model, texts)
        return classify_head(model)(hidden, lengths)
    if images is None:
        raise TrainError("The rows are images, but nothing says how images are prepared.", "Give an ImageProcessor.")
    paths = [item.row for item in items if isinstance(item.row, Path)]
    return read_images(model.network, images(paths).to(model.device))


def targets_of(items: Sequence[Labelled]) -> Tensor:
    """(B, C) in fp32."""
    return torch.tensor([item.target for item in items])


def summed_loss(
    logits: Tensor, targets: Tensor, *, multi_label: bool, weights: Tensor | None = None, smoothing: float = 0.0
) -> tuple[Tensor, float]:
    """Logits and targets (B, C) → the sum of losses in nats, and what to divide it by.

    One label a row: cross-entropy; weighted rows are divided by the sum of their weights, as torch's mean is. Several
    labels, or a score: binary cross-entropy of every label, divided by all of them. ``weights``: (C,) of the labels, in
    the second case of their true cases only. ``smoothing`` as in Szegedy et al. 2016, section 7.
    """
    if not multi_label:
        chosen = targets.argmax(dim=-1)
        own = None if weights is None else weights.to(logits.device)
        total = cross_entropy(logits.float(), chosen, weight=own, label_smoothing=smoothing, reduction="sum")
        return total, float(len(chosen) if own is None else own[chosen].sum())
    targets = targets * (1.0 - smoothing) + smoothing / 2
    own = None if weights is None else weights.to(logits.device)
    return binary_cross_entropy_with_logits(logits.float(), targets, pos_weight=own, reduction="sum"), targets.numel()


_BIAS = "head.linear.bias"


def _check_decision(model: Model, parameters: Iterable[str], validation_rows: Sequence[Labelled]) -> None:
    """Refuse what cannot end with a decision for macro-F1, before hours of training."""
    head = classify_head(model)
    if head.config.multi_label or head.linear.bias is None:
        why = "several labels may hold at once" if head.config.multi_label else "this family's head has no bias"
        raise TrainError(f"decision is macro_f1, but {why}.", "Leave decision out.")
    if _BIAS not in parameters:
        raise TrainError(
            "decision is macro_f1, but the head does not train.", "Name it in parts, or leave decision out."
        )
    if not validation_rows:
        raise TrainError("decision is macro_f1, but there are no validation rows.", "Give some, or leave it out.")


@torch.no_grad()
def _lean(
    run: TrainingRun[Labelled],
    train_rows: Sequence[Labelled],
    watched: Sequence[Labelled],
    images: ImageProcessor | None,
) -> float:
    """Move the head's bias as ``best_lean`` says; returns how far."""
    shares = targets_of(train_rows).mean(dim=0).clamp(min=0.5 / len(train_rows))
    lean = best_lean(
        all_logits(run.model, watched, images).numpy(), targets_of(watched).argmax(-1).numpy(), shares.numpy()
    )
    bias = run.weights.masters[_BIAS]
    bias -= like(lean * shares.log().to(mine(bias)), bias)
    run.weights.round()
    return lean


@torch.no_grad()
def all_logits(model: Model, items: Sequence[Labelled], images: ImageProcessor | None = None) -> Tensor:
    """What the head says of any number of rows: (B, C) in fp32, on the CPU."""
    logits = torch.empty(len(items), len(classify_head(model).config.labels))
    for pack in packs([item.num_tokens for item in items], PACK_TOKENS if images is None else 32):
        logits[pack] = logits_of(model, [items[i] for i in pack], images).float().cpu()
    return logits


def score(model: Model, items: Sequence[Labelled], images: ImageProcessor | None = None) -> dict[str, Any]:
    """Loss without weights and smoothing, and how many labels are right (train/measures); of scores Spearman's ρ."""
    head = classify_head(model)
    logits, targets = all_logits(model, items, images), targets_of(items)
    total, count = summed_loss(logits, targets, multi_label=head.config.multi_label)
    found: dict[str, Any] = {"loss": float(total) / count}
    if len(head.config.labels) == 1:
        return {**found, "spearman": rank_correlation(logits[:, 0].tolist(), targets[:, 0].tolist())}
    if head.config.multi_label:
        return {**found, **set_scores(targets.numpy() > 0.5, logits.numpy() > 0, head.config.labels)}
    return {**found, **label_scores(targets.argmax(-1).numpy(), logits.argmax(-1).numpy(), head.config.labels)}


plugin = train
