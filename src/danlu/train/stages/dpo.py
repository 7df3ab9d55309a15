"""Learning from compared answers: DPO, and with another method named in its config IPO, ORPO, SimPO or KTO.

    pairs = encode_pairs(rows, model.chat, config.max_row_tokens).items
    metrics = train(model, pairs, validation, DpoConfig(), job)

The reference is the model as it was before: its log-probabilities are taken once, before the first step, so there is
never a second copy of the model. Rows are those of train/preferences.py, methods those of train/comparisons.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from danlu.core.errors import ConfigError
from danlu.models.encode import PACK_TOKENS, packs
from danlu.models.model import Model
from danlu.train.batches import RowBatches
from danlu.train.comparisons import Dpo, Ipo, Kto, Method, Orpo, Said, Simpo
from danlu.train.lora import LoraConfig
from danlu.train.losses.completions import Completions, read_completions
from danlu.train.losses.preference import kto_baseline
from danlu.train.losses.tokens import row_means
from danlu.train.method import prepare, rates
from danlu.train.preferences import Judged, Pair
from danlu.train.reference import reference_sums
from danlu.train.run import Job, Summed, TrainingRun
from danlu.train.samples import SampledConfig, Samples, asks_of_chats
from danlu.train.settings import Usual
from danlu.train.world import World


@dataclass(frozen=True, kw_only=True)
class DpoConfig(SampledConfig):
    """Learn from compared answers; DPO unless another method is given."""

    usual: ClassVar[Usual] = Usual(steps=100, full_rate=5e-6, adapter_rate=5e-5)

    dpo: Dpo | None = None
    """Direct preference optimisation and its settings."""
    ipo: Ipo | None = None
    """Identity preference optimisation."""
    orpo: Orpo | None = None
    """Fine-tuning and preference at once, without a reference."""
    simpo: Simpo | None = None
    """Log-probabilities a token with a margin, without a reference."""
    kto: Kto | None = None
    """Single answers that were liked or not: rows of prompt, completion and label; of pairs it takes both."""
    rows_per_step: int = 8
    """Pairs, or judged answers, in a batch."""
    max_row_tokens: int = 512
    """Rows with a longer prompt and answer are left out and counted."""
    lora: LoraConfig | None = field(default_factory=LoraConfig)
    """The adapter; null to train all weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rows_per_step", "max_row_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Use 1 or more.")
        given = [name for name in ("dpo", "ipo", "orpo", "simpo", "kto") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} are both given.", "Give one method.")

    @property
    def method(self) -> Method:
        """The one that is given."""
        return self.dpo or self.ipo or self.orpo or self.simpo or self.kto or Dpo()


def train(
    model: Model,
    train_rows: Sequence[Pair] | Sequence[Judged],
    validation_rows: Sequence[Pair] | Sequence[Judged],
    config: DpoConfig,
    job: Job,
) -> dict[str, Any]:
    """Train ``model`` in place on pairs, or with KTO on judged answers; returns metrics."""
    assert train_rows, "train needs at least one row"
    torch.manual_seed(job.seed)  # pyright: ignore[reportUnknownMemberType]
    base_parameters = model.num_parameters()
    items = [*train_rows, *validation_rows[: config.max_validation_rows]]
    watched = range(len(train_rows), len(items))
    parameters = prepare(model, config)
    batches = RowBatches(
        range(len(train_rows)),
        lambda row: items[row].num_tokens,
        seed=job.seed,
        rows_per_step=config.rows_per_step,
        micro_tokens=config.micro_tokens,
    )
    samples = Samples(model, config, asks_of_chats(model, (row.answers[0] for row in validation_rows)))
    tuned = rates(model.network, config)
    run = TrainingRun(model, parameters, config, batches, job, rates=tuned, samples=samples)
    comparing = _Comparing(model, items, config.method, job)
    with run:
        for step in run.steps():
            parts = batches.at(step.number - 1, job.world.rank, job.world.size)
            comparing.measure_drift(parts, job.world)
            step.accumulate(comparing.loss_of)
            step.update()
            if watched and step.validates:
                with step.validating():
                    step.report(comparing.score(watched))
    metrics = run.metrics()
    return {
        **metrics,
        "train_rows": len(train_rows),
        "trainable_share": metrics["trainable_parameters"] / base_parameters,
        "validation": {name: run.curve.values(name)[-1] for name in _VALIDATED if run.curve.values(name)},
    }


_VALIDATED = ("validation_loss", "validation_rewards/accuracy", "validation_rewards/margin")


class _Comparing:
    """Losses of rows by their number in ``items``, with what the reference said of them."""

    def __init__(self, model: Model, items: Sequence[Pair | Judged], method: Method, job: Job) -> None:
        self._model, self._items, self._method = model, items, method
        self._reference: list[list[float]] | None = None
        self._baseline = torch.zeros(())
        if method.needs_reference:
            answers = [answer for item in items for answer in item.answers]
            said = reference_sums(model, answers, job)
            self._reference = [said[2 * row : 2 * row + 2] for row in range(len(items))]

    def loss_of(self, rows: Sequence[int]) -> Summed:
        """The summed loss of some rows; to be divided by their number."""
        items = [self._items[row] for row in rows]
        if isinstance(self._method, Kto):
            read, said = self._read(rows, places=(0,))
            labels = [isinstance(item, Judged) and item.is_desirable for item in items]
            total, parts = self._method(said, torch.tensor(labels, device=said.sums.device), self._baseline)
        else:
            read, said = self._read(rows, places=(0, 1))
            total, parts = self._method(said.at(slice(len(rows))), said.at(slice(len(rows), None)))
        with torch.no_grad():
            first = row_means(read.tokens.entropies, read.counts)[: len(rows)]
            right = row_means(read.tokens.is_first, read.counts)[: len(rows)]
        parts |= {"entropy": first.sum(), "token_accuracy": right.sum()}
        return Summed(total, len(rows), read.num_tokens, parts)

    @torch.no_grad()
    def measure_drift(self, parts: Sequence[Sequence[int]], world: World | None = None) -> None:
        """KTO's baseline: how far the policy is from its reference on answers to other prompts, over a whole step.

        Without dropout, so that it is the same however often a step is begun.
        """
        if not isinstance(self._method, Kto):
            return
        was_training = self._model.network.training
        self._model.network.eval()
        ratios = [self._read(rows or [0], places=(1,))[1].ratios.sum() * bool(rows) for rows in parts]
        self._model.network.train(was_training)
        sums = [float(sum(ratios)), float(sum(len(rows) for rows in parts))]
        total, count = sums if world is None else world.sum(sums)
        self._baseline = kto_baseline(torch.tensor(total, device=self._model.device), count)

    def score(self, rows: Sequence[int]) -> dict[str, float]:
        """Mean loss and rewards of rows that are not trained on."""
        parts = [[rows[i] for i in pack] for pack in packs([self._items[row].num_tokens for row in rows], PACK_TOKENS)]
        self.measure_drift(parts)
        sums: dict[str, float] = {}
        for part in parts:
            found = self.loss_of(part)
            for name, value in {"loss": found.total, **found.parts}.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return {f"validation_{name}": value / len(rows) for name, value in sums.items()}

    def _read(self, rows: Sequence[int], places: Sequence[int]) -> tuple[Completions, Said]:
        """What is said of answers 0 and/or 1 of each row: all the first ones, then all the second ones."""
        read = read_completions(self._model.network, [self._items[row].answers[i] for i in places for row in rows])
        sums = read.sums()
        reference = None
        if self._reference is not None:
            told = [self._reference[row][i] for i in places for row in rows]
            reference = torch.tensor(told, dtype=sums.dtype, device=sums.device)
        return read, Said(sums, torch.tensor(read.counts, device=sums.device), reference)


plugin = train
