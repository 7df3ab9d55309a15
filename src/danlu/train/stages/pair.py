"""Images and texts in one space: each image is drawn to its own text and away from all others of the batch.

    model = load_model(path, precision="fp32")                 # CLIP, SigLIP
    images = ImageProcessor.of_folder(path)
    metrics = train(model, encode_rows(rows, model).items, validation, PairTrainConfig(), job, images=images)
    ImageModel.of(model, path).choose(["photo.jpg"], ["a shoe", "a hat"])

Rows are those of train/captioned.py. The others are those of one process: with several, each has its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from danlu.core.errors import ConfigError
from danlu.models.images import ImageProcessor
from danlu.models.model import Model
from danlu.train.captioned import Captioned, pair_network, same_rows
from danlu.train.losses.contrastive import nce_of_logits, sigmoid_of_logits
from danlu.train.measures import rank_scores
from danlu.train.method import prepare, rates
from danlu.train.run import Summed, TrainingRun
from danlu.train.settings import Job, RunConfig, Usual
from danlu.train.texts import TuningOptim, training_head
from danlu.train.whole_batch import WholeBatches, embed_in_parts

MOST_FACTOR = 100.0
"""Cosines are not multiplied by more (Radford et al. 2021, section 2.5)."""
VALIDATION_TOKENS = 8192
"""Tokens, of texts or patches, that run together where nothing else is asked for."""


@dataclass(frozen=True, kw_only=True)
class PairTrainConfig(RunConfig):
    """Fine-tune a model of images and texts."""

    usual: ClassVar[Usual] = Usual(epochs=3.0, full_rate=1e-5, adapter_rate=1e-4)

    rows_per_step: int = 32
    """Rows in a batch: every other row is a row's negatives. ``micro_tokens`` saves memory, not negatives."""
    max_row_tokens: int | None = None
    """Longer texts lose their end, and are counted; null for all that the model reads."""
    optim: TuningOptim = field(default_factory=TuningOptim)
    """The optimiser."""
    max_validation_rows: int = 1000
    """Validation rows used."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows_per_step < 2:
            raise ConfigError(f"rows_per_step is {self.rows_per_step}.", "A batch needs other rows: use 2 or more.")
        if self.max_row_tokens is not None and self.max_row_tokens < 1:
            raise ConfigError(f"max_row_tokens is {self.max_row_tokens}.", "Use 1 or more.")


def train(
    model: Model,
    train_rows: Sequence[Captioned],
    validation_rows: Sequence[Captioned],
    config: PairTrainConfig,
    job: Job,
    *,
    test_rows: Sequence[Captioned] = (),
    images: ImageProcessor,
) -> dict[str, Any]:
    """Train ``model`` in place; returns metrics. ``test_rows`` are scored at the end; ``images`` prepares the model's
    images."""
    assert train_rows, "train needs at least one row"
    torch.manual_seed(job.seed)  # pyright: ignore[reportUnknownMemberType]
    watched = validation_rows[: config.max_validation_rows]
    parameters = prepare(model, training_head(config))
    batches = WholeBatches(train_rows, lambda item: len(item.ids), seed=job.seed, rows_per_step=config.rows_per_step)

    def loss_of(whole: Sequence[Sequence[Captioned]]) -> Summed:
        (items,) = whole
        loss = summed_loss(model, *vectors_of(model, items, images, config.micro_tokens), items)
        return Summed(loss, len(items), sum(len(item.ids) for item in items))

    with TrainingRun(model, parameters, config, batches, job, rates=rates(model.network, config)) as run:
        for step in run.steps():
            step.accumulate(loss_of)
            step.update()
            _limit_factor(run)
            if watched and step.validates:
                with step.validating():
                    found = score(model, watched, config, images)
                step.report({f"validation_{name}": value for name, value in found.items()})
        asked = {"validation": watched, "test": test_rows}
        scores = {name: score(model, rows, config, images) for name, rows in asked.items() if rows}
    metrics = run.metrics()
    return {
        **metrics,
        "train_rows": len(train_rows),
        "trainable_share": metrics["trainable_parameters"] / model.num_parameters(),
        **scores,
    }


def vectors_of(
    model: Model, items: Sequence[Captioned], images: ImageProcessor, micro_tokens: int | None
) -> tuple[Tensor, Tensor]:
    """Of images and of texts: (B, P) each."""
    network = pair_network(model)

    def see(some: Sequence[Path]) -> Tensor:
        return network.embed_images(images(some).to(network.device))

    def read(some: Sequence[tuple[int, ...]]) -> Tensor:
        ids = torch.tensor([index for row in some for index in row], device=network.device)
        return network.embed_texts(ids, [len(row) for row in some])

    patches = network.config.image.context_length
    seen = embed_in_parts(see, [item.image for item in items], lambda _: patches, micro_tokens)
    return seen, embed_in_parts(read, [item.ids for item in items], len, micro_tokens)


def summed_loss(model: Model, seen: Tensor, read: Tensor, items: Sequence[Captioned]) -> Tensor:
    """Vectors of images and texts (B, P) → a scalar, to divide by B; which loss says the model's head. A text that
    stands there twice does not count against the other's image."""
    head = pair_network(model).head
    logits = head(seen.float(), read.float())
    ignored = same_rows(items).to(logits.device)
    if head.config.kind == "sigmoid":
        return sigmoid_of_logits(logits, ignored=ignored)
    return nce_of_logits(logits, ignored=ignored)


@torch.no_grad()
def score(
    model: Model, items: Sequence[Captioned], config: PairTrainConfig, images: ImageProcessor
) -> dict[str, float]:  # fmt: skip
    """Loss in batches as in training, and recall at 1, 5 and 10 both ways among all rows."""
    seen, read = (part.float() for part in vectors_of(model, items, images, config.micro_tokens or VALIDATION_TOKENS))
    size = config.rows_per_step
    places = [slice(first, first + size) for first in range(0, len(items), size)]
    total = sum(float(summed_loss(model, seen[place], read[place], items[place])) for place in places)
    found = {"loss": total / len(items)}
    cosines, right = seen @ read.t(), same_rows(items) | torch.eye(len(items), dtype=torch.bool)
    for name, table, mine in (("text", cosines, right), ("image", cosines.t(), right.t())):
        best = table.masked_fill(~mine.to(table.device), -2.0).amax(dim=1, keepdim=True)
        ranks = 1 + (table > best).sum(dim=1)
        found |= {f"{name}_{key}": value for key, value in rank_scores(ranks.tolist(), (1, 5, 10)).items()}
    return found


@torch.no_grad()
def _limit_factor(run: TrainingRun[Any]) -> None:
    factor = run.weights.masters.get("head.log_factor")
    if factor is not None and float(factor) > math.log(MOST_FACTOR):
        factor.fill_(math.log(MOST_FACTOR))
        run.weights.round()


plugin = train
