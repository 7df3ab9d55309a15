"""Pre-training on token shards: next tokens (decoders), hidden tokens (encoders), missing spans and damaged text
(encoder-decoders).

Which sequences a step sees and what is hidden in them follows from the seed and the step, so a run needs no state of
its data. Documents of a sequence do not see each other unless they are joined.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from danlu.core.errors import ConfigError, DataError
from danlu.data.loader import Documents, LoaderConfig, TokenLoader, TokenSource
from danlu.data.shards import TokenShards
from danlu.models.model import Model
from danlu.train.held_out import held_out
from danlu.train.method import prepare, rates
from danlu.train.objectives.asked import Asked, AskedBatches, join, summed_loss
from danlu.train.objectives.choose import Chosen, Objective, choose
from danlu.train.objectives.denoise import DenoiseConfig
from danlu.train.objectives.masked import MaskedConfig
from danlu.train.objectives.spans import SpansConfig
from danlu.train.run import Job, Summed, TrainingRun
from danlu.train.samples import Ask, SampledConfig, Samples
from danlu.train.settings import Usual

_BEGUN = 12
"""Tokens of a document that a sample goes on with."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(SampledConfig):
    """Learn a language from text alone. Without masked, spans or denoise: tell the next token."""

    usual: ClassVar[Usual] = Usual(steps=100, full_rate=2e-3, adapter_rate=2e-3)

    sequence_length: int = 256
    """Most tokens of a row; an encoder-decoder's source has as many."""
    tokens_per_step: int = 8192
    """Tokens of a batch; a whole number of sequences of them is used."""
    documents: Documents = "packed"
    """packed: whole documents in a sequence, longer ones cut; chunked: documents end to end, cut into equal sequences,
    each document's piece a row of its own; joined: the same, a sequence is one row and documents see what is before."""
    z_loss: float = 0.0
    """Weight of log² Z in the loss, which keeps logits from drifting; 1e-4 is usual in long runs."""
    masked: MaskedConfig | None = None
    """Hide tokens: for encoders."""
    spans: SpansConfig | None = None
    """Leave spans out: for encoder-decoders."""
    denoise: DenoiseConfig | None = None
    """Damage the text: for encoder-decoders."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sequence_length < 4:
            raise ConfigError(f"sequence_length is {self.sequence_length}.", "Use 4 or more.")
        if self.tokens_per_step < self.sequence_length:
            raise ConfigError(
                f"tokens_per_step {self.tokens_per_step} is less than sequence_length {self.sequence_length}.",
                "A batch must hold one sequence at least.",
            )
        if self.z_loss < 0:
            raise ConfigError(f"z_loss is {self.z_loss}.", "Use 0 or a small weight such as 1e-4.")
        given = [name for name in ("masked", "spans", "denoise") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} are given together.", "Give one of them, or none.")

    @property
    def objective(self) -> Objective:
        """What is asked; None for the next token."""
        return self.masked or self.spans or self.denoise


def pretrain(
    model: Model, train: Sequence[TokenSource], validation: TokenShards | None, config: PretrainConfig, job: Job
) -> dict[str, Any]:
    """Train ``model`` in place; returns metrics.

    During the run ``max_validation_rows`` held-out documents are watched, at its end a decoder reads all of them.
    """
    chosen = choose(model, config.objective, config.sequence_length, config.documents)
    _check_fit(model, [*(source.shards for source in train), *([validation] if validation else [])], config)
    loader = TokenLoader(
        train, _loader_config(config, chosen, job.world.size), seed=job.seed, micro_tokens=config.micro_tokens
    )  # fmt: skip
    batches = AskedBatches(loader, chosen.ask, seed=job.seed, tokens_per_step=config.tokens_per_step)
    watched = _Watched(model, validation, config, chosen)

    def loss_of(parts: Sequence[Asked]) -> Summed:
        return summed_loss(model.network, join(parts), z_weight=config.z_loss)

    parameters = prepare(model, config)
    samples = watched.samples(model, config)
    tuned = rates(model.network, config)
    with TrainingRun(model, parameters, config, batches, job, rates=tuned, samples=samples) as run:
        for step in run.steps():
            step.accumulate(loss_of)
            step.update()
            if watched.is_there and step.validates:
                with step.validating():
                    step.report(watched.read())
        found = watched.read_all()
    return {**run.metrics(), **found}


class _Watched:
    """Held-out documents, read the same way each time."""

    def __init__(self, model: Model, shards: TokenShards | None, config: PretrainConfig, chosen: Chosen) -> None:
        self._network, self._shards, self._chosen = model.network, shards, chosen
        self._row_tokens, self._is_plain = config.sequence_length, config.objective is None
        self._most = config.max_validation_rows
        self._asked: list[Asked] = []
        self.is_there = shards is not None and shards.num_documents > 0 and self._most > 0
        if self.is_there and not self._is_plain:
            assert shards is not None
            one_by_one = LoaderConfig(sequence_length=chosen.row_tokens, sequences_per_batch=1, is_shuffled=False)
            loader = TokenLoader([TokenSource(shards=shards)], one_by_one, seed=0)
            for number in range(min(self._most, loader.per_epoch)):
                ((rows,),) = loader.at(number)
                self._asked.append(chosen.ask(rows, np.random.default_rng([0, number])))

    def read(self) -> dict[str, float]:
        """The loss on some of them."""
        if not self._is_plain:
            losses = [summed_loss(self._network, asked) for asked in self._asked]
            count = sum(loss.count for loss in losses)
            return {"validation_loss": sum(float(loss.total) for loss in losses) / max(count, 1)}
        return self._found(self._most)

    def read_all(self) -> dict[str, Any]:
        """What a decoder makes of all of them."""
        if not self.is_there or not self._is_plain:
            return {}
        found = self._found(None)
        return {f"held_out_{name.removeprefix('validation_')}": value for name, value in found.items()}

    def samples(self, model: Model, config: PretrainConfig) -> Samples | None:
        """Documents that the model goes on with, a few tokens given; None where it is not asked for the next token."""
        return Samples(model, config, self._begun(model, config), is_plain=True) if self._is_plain else None

    def _begun(self, model: Model, config: PretrainConfig) -> Iterator[Ask]:
        if not self.is_there or self._shards is None:
            return
        first = [] if self._chosen.separator is None else [self._chosen.separator]
        for number in range(self._shards.num_documents):
            ids = self._shards.document(number)[: _BEGUN + config.sample_tokens].tolist()
            if len(ids) > _BEGUN:
                yield Ask([*first, *ids[:_BEGUN]], model.chat.tokenizer.decode(ids[_BEGUN:]))

    def _found(self, most: int | None) -> dict[str, float]:
        assert self._shards is not None
        found = held_out(
            self._network,
            self._shards,
            row_tokens=self._row_tokens,
            separator=self._chosen.separator,
            max_documents=most,
        )
        values = {"validation_loss": found.loss, "perplexity": found.perplexity}
        if found.bits_per_byte is not None:
            values["bits_per_byte"] = found.bits_per_byte
        return values


def _loader_config(config: PretrainConfig, chosen: Chosen, world_size: int) -> LoaderConfig:
    count = max(world_size, config.tokens_per_step // config.sequence_length)
    return LoaderConfig(
        sequence_length=chosen.row_tokens, sequences_per_batch=count, documents=config.documents
    )  # fmt: skip


def _check_fit(model: Model, shards: Sequence[TokenShards], config: PretrainConfig) -> None:
    """DataError or ConfigError when ids or rows are beyond the model."""
    largest = max(one.vocabulary_size for one in shards)
    if largest > model.config.vocabulary_size:
        raise DataError(
            f"The shards have ids up to {largest - 1}, the model knows {model.config.vocabulary_size}.",
            "Tokenize with the model's own tokenizer.",
        )
    if config.sequence_length > model.config.context_length:
        raise ConfigError(
            f"sequence_length is {config.sequence_length}, the model reads {model.config.context_length} tokens.",
            "Use shorter sequences, or a model with a longer context.",
        )


plugin = pretrain
