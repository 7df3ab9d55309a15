"""Tags for words (entities, parts of speech): a new head on any body, all of it trained, or an adapter.

    model = with_head(load_model(path, precision="fp32"), tags_of(rows), source=path)
    metrics = train(model, encode_rows(rows, model).items, validation, TaggerConfig(), job)
    tag(model, ["…"])

Rows and tags are those of train/tagged.py, heads those of models/rehead.py; models/encode.py asks the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from danlu.core.errors import ConfigError
from danlu.models.encode import PACK_TOKENS, packs
from danlu.models.model import Model
from danlu.train.batches import RowBatches
from danlu.train.measures import entity_scores
from danlu.train.method import prepare, rates
from danlu.train.run import Summed, TrainingRun
from danlu.train.settings import Job, RunConfig, Usual
from danlu.train.tagged import Tagged, tag_head
from danlu.train.texts import TuningOptim, read_rows, training_head


@dataclass(frozen=True, kw_only=True)
class TaggerConfig(RunConfig):
    """Fine-tune a model to tag words."""

    usual: ClassVar[Usual] = Usual(epochs=3.0, full_rate=2e-5, adapter_rate=2e-4)

    rows_per_step: int = 16
    """Rows in a batch."""
    max_row_tokens: int | None = None
    """Longer texts lose their end, and are counted; null for all that the model reads."""
    labels: tuple[str, ...] = ()
    """Names of the tags, in the order of the logits; left out, those of the training rows."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over all tags."""
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
    train_rows: Sequence[Tagged],
    validation_rows: Sequence[Tagged],
    config: TaggerConfig,
    job: Job,
    *,
    test_rows: Sequence[Tagged] = (),
) -> dict[str, Any]:
    """Train ``model`` in place; returns metrics. ``test_rows`` are scored at the end."""
    assert train_rows, "train needs at least one row"
    torch.manual_seed(job.seed)  # pyright: ignore[reportUnknownMemberType]
    labels, watched = tag_head(model).config.labels, validation_rows[: config.max_validation_rows]
    parameters = prepare(model, training_head(config))
    batches = RowBatches(
        train_rows,
        lambda item: len(item.row[0]),
        seed=job.seed,
        rows_per_step=config.rows_per_step,
        micro_tokens=config.micro_tokens,
    )

    def loss_of(items: Sequence[Tagged]) -> Summed:
        logits, targets = logits_of(model, items), targets_of(items).to(model.device)
        total = cross_entropy(logits.float(), targets, label_smoothing=config.label_smoothing, reduction="sum")
        return Summed(total, len(targets), sum(len(item.row[0]) for item in items))

    with TrainingRun(model, parameters, config, batches, job, rates=rates(model.network, config)) as run:
        for step in run.steps():
            step.accumulate(loss_of)
            step.update()
            if watched and step.validates:
                with step.validating():
                    found = score(model, watched)
                step.report({f"validation_{name}": value for name, value in found.items() if name != "per_label"})
        asked = {"validation": watched, "test": test_rows}
        scores = {name: score(model, rows) for name, rows in asked.items() if rows}
    metrics = run.metrics()
    return {
        **metrics,
        "train_rows": len(train_rows),
        "labels": list(labels),
        "trainable_share": metrics["trainable_parameters"] / model.num_parameters(),
        **scores,
    }


def logits_of(model: Model, items: Sequence[Tagged]) -> Tensor:
    """What the head says of the supervised tokens of rows, end to end: (M, C)."""
    hidden, lengths = read_rows(model, [item.row for item in items])
    places: list[int] = []
    start = 0
    for item, length in zip(items, lengths, strict=True):
        places += [start + place for place in item.places]
        start += length
    return tag_head(model)(hidden[places])


def targets_of(items: Sequence[Tagged]) -> Tensor:
    """(M,) tags of the same tokens."""
    return torch.tensor([tag for item in items for tag in item.tags])


@torch.no_grad()
def score(model: Model, items: Sequence[Tagged]) -> dict[str, Any]:
    """Loss a word, share of words with the right tag, and how many entities are right (train/measures)."""
    labels = tag_head(model).config.labels
    guessed: list[list[str]] = [[] for _ in items]
    total, hits, words = 0.0, 0, 0
    for pack in packs([len(item.row[0]) for item in items], PACK_TOKENS):
        chosen = [items[i] for i in pack]
        logits, targets = logits_of(model, chosen).float().cpu(), targets_of(chosen)
        total += float(cross_entropy(logits, targets, reduction="sum"))
        best = logits.argmax(dim=-1)
        hits, words = hits + int((best == targets).sum()), words + len(targets)
        for i, part in zip(pack, best.split([len(item.places) for item in chosen]), strict=True):
            guessed[i] = [labels[index] for index in part.tolist()]
    gold = [[labels[index] for index in item.tags] for item in items]
    return {"loss": total / words, "accuracy": hits / words, **entity_scores(gold, guessed)}


plugin = train
