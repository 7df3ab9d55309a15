"""Vectors of texts for search and comparison: what belongs together is drawn together, all else apart.

    model = sentence_model(load_model(path, precision="fp32"))
    metrics = train(model, encode_rows(rows, model).items, validation, EmbedderConfig(), job)
    embed(model, ["…"])

Rows are those of train/related.py; models/encode.py asks the result; saved it is a sentence-transformers folder.
Negatives in the batch are those of one process: with several, each has its own.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from danlu.core.errors import ConfigError
from danlu.models.encode import PACK_TOKENS, Row
from danlu.models.model import Model
from danlu.models.pooling import Pooling
from danlu.train.losses.contrastive import cosine_loss, false_negatives, info_nce, matryoshka
from danlu.train.measures import rank_correlation, rank_scores
from danlu.train.method import prepare, rates
from danlu.train.related import Related, embed_head, keys_of, places_of
from danlu.train.run import Summed, TrainingRun
from danlu.train.settings import Job, RunConfig, Usual
from danlu.train.texts import TuningOptim, read_rows
from danlu.train.whole_batch import WholeBatches, embed_in_parts


@dataclass(frozen=True, kw_only=True)
class EmbedderConfig(RunConfig):
    """Fine-tune a model to embed texts."""

    usual: ClassVar[Usual] = Usual(epochs=1.0, full_rate=2e-5, adapter_rate=2e-4)

    rows_per_step: int = 32
    """Rows in a batch: every other row's texts are a row's negatives. ``micro_tokens`` saves memory, not negatives."""
    loss: Literal["contrastive", "cosent", "cosine"] = "contrastive"
    """contrastive: the positive among all texts of the batch; for rows with scores cosent (order) or cosine (value)."""
    temperature: float = 0.05
    """Cosines are divided by this, in contrastive and cosent."""
    both_ways: bool = False
    """Whether positives also look for their anchors."""
    matryoshka: tuple[int, ...] = ()
    """Sizes that vectors may be cut to, the full one among them; empty for the full one alone."""
    max_row_tokens: int | None = None
    """Longer texts lose their end, in training and serving; null for what the model says."""
    pooling: Pooling = "mean"
    """Which tokens are read, when the model is not yet a sentence model."""
    normalise: bool = True
    """Whether vectors have length 1, when the model is not yet a sentence model."""
    query_prompt: str | None = None
    """Put before anchors, in training and serving ("query: ")."""
    passage_prompt: str | None = None
    """Put before positives and negatives."""
    optim: TuningOptim = field(default_factory=TuningOptim)
    """The optimiser."""
    max_validation_rows: int = 2000
    """Validation rows used."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rows_per_step", "max_row_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} is {value}.", "Use 1 or more.")
        if self.temperature <= 0:
            raise ConfigError(f"temperature is {self.temperature}.", "Use a positive number such as 0.05.")
        if self.loss == "contrastive" and self.rows_per_step < 2:
            raise ConfigError("rows_per_step is 1.", "A contrastive batch needs other rows: use 2 or more.")

    @property
    def is_scored(self) -> bool:
        """Whether rows need scores."""
        return self.loss != "contrastive"


def train(
    model: Model,
    train_rows: Sequence[Related],
    validation_rows: Sequence[Related],
    config: EmbedderConfig,
    job: Job,
    *,
    test_rows: Sequence[Related] = (),
) -> dict[str, Any]:
    """Train ``model`` in place; returns metrics. ``test_rows`` are scored at the end. Raises ConfigError for sizes that
    vectors do not have."""
    assert train_rows, "train needs at least one row"
    torch.manual_seed(job.seed)  # pyright: ignore[reportUnknownMemberType]
    watched = validation_rows[: config.max_validation_rows]
    _check_sizes(model, config)
    parameters = prepare(model, config)
    batches = WholeBatches(
        train_rows, lambda item: item.num_tokens, seed=job.seed, rows_per_step=config.rows_per_step
    )  # fmt: skip

    def loss_of(whole: Sequence[Sequence[Related]]) -> Summed:
        (items,) = whole
        loss = summed_loss(vectors_of(model, items, config.micro_tokens), items, config)
        return Summed(loss, len(items), sum(item.num_tokens for item in items))

    with TrainingRun(model, parameters, config, batches, job, rates=rates(model.network, config)) as run:
        for step in run.steps():
            step.accumulate(loss_of)
            step.update()
            if watched and step.validates:
                with step.validating():
                    found = score(model, watched, config)
                step.report({f"validation_{name}": value for name, value in found.items()})
        asked = {"validation": watched, "test": test_rows}
        scores = {name: score(model, rows, config) for name, rows in asked.items() if rows}
    metrics = run.metrics()
    return {
        **metrics,
        "train_rows": len(train_rows),
        "trainable_share": metrics["trainable_parameters"] / model.num_parameters(),
        **scores,
    }


def vectors_of(model: Model, items: Sequence[Related], micro_tokens: int | None) -> Tensor:
    """Of all texts of all rows, end to end: (T, P)."""

    def embed(rows: Sequence[Row]) -> Tensor:
        return embed_head(model)(*read_rows(model, rows))

    return embed_in_parts(embed, [row for item in items for row in item.rows], lambda row: len(row[0]), micro_tokens)


def summed_loss(vectors: Tensor, items: Sequence[Related], config: EmbedderConfig) -> Tensor:
    """Vectors (T, P) of the texts of B rows → a scalar, to divide by B."""
    anchors, positives, negatives = places_of(items)
    dims = config.matryoshka or (vectors.shape[1],)
    if config.loss == "contrastive":
        ignored = false_negatives(keys_of(items, anchors), keys_of(items, [*positives, *negatives])).to(vectors.device)
        loss = functools.partial(
            info_nce, temperature=config.temperature, ignored=ignored, both_ways=config.both_ways
        )  # fmt: skip
        return matryoshka(loss, vectors[anchors], vectors[[*positives, *negatives]], dims=dims)
    scores = torch.tensor([item.score for item in items], device=vectors.device)
    chosen = cosine_loss if config.loss == "cosine" else functools.partial(cosent_loss, temperature=config.temperature)
    return matryoshka(
        lambda one, other: chosen(one, other, scores), vectors[anchors], vectors[positives], dims=dims
    )  # fmt: skip


def cosent_loss(first: Tensor, second: Tensor, scores: Tensor, *, temperature: float = 0.05) -> Tensor:
    """Vectors (B, P) of pairs, likeness (B,) → B · log(1 + Σ exp((cos i - cos j) / temperature)) over all pairs of rows
    of which i is less alike than j: only the order of scores counts (Su 2022, CoSENT)."""
    cosines = (normalize(first.float(), dim=-1) * normalize(second.float(), dim=-1)).sum(dim=-1) / temperature
    gaps = (cosines.unsqueeze(1) - cosines)[scores.unsqueeze(1) < scores]
    return len(scores) * torch.logsumexp(torch.cat([gaps.new_zeros(1), gaps]), dim=0)


@torch.no_grad()
def score(model: Model, items: Sequence[Related], config: EmbedderConfig) -> dict[str, float]:
    """Loss in batches as in training; recall at 1 and 10 and mean reciprocal rank of each anchor's positive among all
    texts of all rows, or for rows with scores Spearman's ρ of them and the cosines. Cut vectors are told by size."""
    vectors = vectors_of(model, items, PACK_TOKENS).float()
    found, start, total = dict[str, float](), 0, 0.0
    for first in range(0, len(items), config.rows_per_step):
        batch = items[first : first + config.rows_per_step]
        size = sum(len(item.rows) for item in batch)
        total += float(summed_loss(vectors[start : start + size], batch, config))
        start += size
    found["loss"] = total / len(items)
    anchors, positives, negatives = places_of(items)
    for size in config.matryoshka or (vectors.shape[1],):
        name = f"_{size}" if size < vectors.shape[1] else ""
        cut = normalize(vectors[:, :size], dim=-1)
        if config.is_scored:
            cosines = (cut[anchors] * cut[positives]).sum(dim=-1).tolist()
            found[f"spearman{name}"] = rank_correlation(cosines, [float(item.score or 0) for item in items])
            continue
        queries, documents = keys_of(items, anchors), keys_of(items, [*positives, *negatives])
        right = false_negatives(queries, documents).to(cut.device)
        right |= torch.eye(*right.shape, dtype=torch.bool, device=cut.device)
        cosines = cut[anchors] @ cut[[*positives, *negatives]].t()
        best = cosines.masked_fill(~right, -2.0).amax(dim=1, keepdim=True)
        ranks = 1 + ((cosines > best) & ~right).sum(dim=1)
        found |= {f"{key}{name}": value for key, value in rank_scores(ranks.tolist()).items()}
    return found


def _check_sizes(model: Model, config: EmbedderConfig) -> None:
    size = embed_head(model).config.projection or model.config.width
    if any(not 0 < cut <= size for cut in config.matryoshka):
        raise ConfigError(f"matryoshka is {list(config.matryoshka)}, vectors have {size} numbers.", "Use 1 to that.")


plugin = train
