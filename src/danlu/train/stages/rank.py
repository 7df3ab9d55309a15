"""Recommendation: a causal stack over each user's items learns which comes next (SASRec, Kang & McAuley 2018).

    found = read_histories(rows, HistoryColumns())
    model = new_recommender(config, found.items, seed=17)
    metrics = train(model, windows(found.train, config.max_items), found.validation, config, job)
    ranking_scores(ranks(model, found.test))

The loss is a softmax over all items, where SASRec has one negative an item: it ranks far better (Klenitskiy & Vasilev
2023). With very many items a sample of them does, corrected for how it was drawn. Every rank is among all items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from danlu.core.device import pick_device
from danlu.core.errors import ConfigError
from danlu.models.checkpoint import core_config, find_architecture
from danlu.models.heads.rank import RankHead
from danlu.models.model import Model
from danlu.train.batches import RowBatches
from danlu.train.histories import Case
from danlu.train.initial import InitialConfig, draw_weights
from danlu.train.losses.linear_head import linear_cross_entropy
from danlu.train.losses.ranking import draw_items, sampled_softmax
from danlu.train.method import prepare
from danlu.train.optim import OptimConfig
from danlu.train.ranking import ranking_scores, ranks
from danlu.train.run import Job, RunConfig, Summed, TrainingRun
from danlu.train.settings import Usual


@dataclass(frozen=True, kw_only=True)
class RecommenderOptim(OptimConfig):
    """Weights that begin with nothing may be drawn back to it."""

    weight_decay: float = 0.1
    """Decoupled weight decay, of matrices only: no biases, norms or embeddings."""


@dataclass(frozen=True, kw_only=True)
class RecommenderConfig(RunConfig):
    """Train a recommender from nothing."""

    usual: ClassVar[Usual] = Usual(epochs=25.0, full_rate=2e-3, adapter_rate=2e-3)

    width: int = 64
    """Size of the residual stream, and of an item's vector."""
    layers: int = 2
    """Blocks."""
    heads: int = 2
    """Heads of attention."""
    max_items: int = 200
    """Most items of a row: what is looked back at."""
    dropout: float = 0.3
    """Share of embeddings and of branches dropped in training."""
    item_bias: bool = False
    """Whether each item has a score of its own, by how popular it is."""
    negatives: int | None = None
    """Items drawn for each micro-batch instead of a softmax over all: for more than about 100,000 items."""
    negative_power: float = 0.5
    """They are drawn by their number of events to this power: 0 all alike, 1 as they come."""
    rows_per_step: int = 64
    """Rows in a batch."""
    optim: RecommenderOptim = field(default_factory=RecommenderOptim)
    """The optimiser."""
    max_validation_rows: int = 10_000
    """Users watched."""
    precision: Literal["auto", "bf16", "fp32"] = "fp32"
    """Number type the network computes in: so small a one gains nothing from bf16."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora is not None or self.parts is not None:
            raise ConfigError("lora or parts is given, but a recommender begins from nothing.", "Leave it out.")
        for name in ("width", "layers", "heads", "max_items", "rows_per_step", "negatives"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} is {value}.", "Use 1 or more.")
        if self.width % self.heads:
            raise ConfigError(f"{self.heads} heads cannot share a width of {self.width}.", "It must be a multiple.")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout is {self.dropout}.", "Use 0 to below 1.")


def new_recommender(config: RecommenderConfig, items: Sequence[str], seed: int) -> Model:
    """An untrained fp32 model that knows these items. The same config, items and seed give the same weights."""
    theirs = {
        "model_type": "recommender",
        "width": config.width,
        "num_layers": config.layers,
        "num_heads": config.heads,
        "max_items": config.max_items,
        "dropout": config.dropout,
        "item_bias": config.item_bias,
        "items": list(items),
    }
    architecture = find_architecture("recommender")
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        network = core_config(architecture, theirs).make()
        draw_weights(network, InitialConfig())
    network = network.to(pick_device()).eval().requires_grad_(False)
    return Model(network, theirs, architecture, dtype=torch.float32)


def train(
    model: Model,
    train_rows: Sequence[Sequence[int]],
    validation_rows: Sequence[Case],
    config: RecommenderConfig,
    job: Job,
    *,
    test_rows: Sequence[Case] = (),
) -> dict[str, Any]:
    """Train ``model`` in place on rows of item ids, oldest first; returns metrics. ``test_rows`` are scored at the
    end."""
    assert train_rows, "train needs at least one row"
    torch.manual_seed(job.seed)  # pyright: ignore[reportUnknownMemberType]
    watched = validation_rows[: config.max_validation_rows]
    parameters = prepare(model, config)
    batches = RowBatches(
        train_rows, len, seed=job.seed, rows_per_step=config.rows_per_step, micro_tokens=config.micro_tokens
    )
    chances = None
    if config.negatives is not None:
        chances = item_chances(train_rows, model.config.vocabulary_size, config.negative_power).to(model.device)

    def loss_of(rows: Sequence[Sequence[int]]) -> Summed:
        total = summed_loss(model, rows, chances, config.negatives)
        count = sum(map(len, rows))
        return Summed(total, count, count)

    with TrainingRun(model, parameters, config, batches, job) as run:
        for step in run.steps():
            step.accumulate(loss_of)
            step.update()
            if watched and step.validates:
                with step.validating():
                    found = ranking_scores(*ranks(model, watched))
                step.report({f"validation_{name}": value for name, value in found.items()})
        scores = {"test": ranking_scores(*ranks(model, test_rows))} if test_rows else {}
    return {**run.metrics(), "train_rows": len(train_rows), **scores}


def summed_loss(
    model: Model, rows: Sequence[Sequence[int]], chances: Tensor | None = None, negatives: int | None = None
) -> Tensor:
    """Cross-entropy in nats of every item after those before it, summed; estimated with ``negatives``."""
    head, device = model.network.head, model.device
    assert isinstance(head, RankHead)
    ids = torch.tensor([index for row in rows for index in (0, *row[:-1])], device=device)
    targets = torch.tensor([index for row in rows for index in row], device=device)
    hidden = model.network.rows(ids, [len(row) for row in rows])  # (N, D)
    weight, bias, first = head.linear.weight, head.linear.bias, head.config.reserved
    if chances is None or negatives is None:
        shifts = None if bias is None else bias[first:]
        return linear_cross_entropy(hidden, weight[first:], targets - first, shifts)[0]
    drawn, log_expected = draw_items(chances, negatives)
    own = (hidden * weight[targets]).sum(dim=-1)
    sampled = hidden @ weight[drawn].t()  # (N, S)
    if bias is not None:
        own, sampled = own + bias[targets], sampled + bias[drawn]
    return sampled_softmax(own, sampled, log_expected, drawn == targets.unsqueeze(1))


def item_chances(rows: Sequence[Sequence[int]], vocabulary_size: int, power: float) -> Tensor:
    """How likely each id is drawn: its count to ``power``, (V,); what never came, and the reserved id, never."""
    counts = torch.bincount(torch.tensor([i for row in rows for i in row]), minlength=vocabulary_size).float()
    weights = torch.where(counts > 0, counts**power, 0.0)
    return weights / weights.sum()


plugin = train
