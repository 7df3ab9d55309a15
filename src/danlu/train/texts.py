"""Texts as rows of ids for models that are fine-tuned: framed, cut at a limit, counted, and read with gradients.

Framing is what serving does (models/encode), so a model learns on what it will be asked. Knows no labels and no losses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from danlu.core.errors import TrainError
from danlu.models.encode import Row
from danlu.models.model import Model
from danlu.train.method import MethodConfig
from danlu.train.optim import OptimConfig
from danlu.train.schedule import Shape

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class TuningOptim(OptimConfig):
    """AdamW as whole encoders are fine-tuned with it (Devlin et al. 2019, appendix A.3)."""

    schedule: Shape = "linear"
    """How the rate falls after warm-up."""
    final_share: float = 0.0
    """The rate ends at this share of its peak."""
    weight_decay: float = 0.01
    """Decoupled weight decay, of matrices only: no biases, norms or embeddings."""
    beta2: float = 0.999
    """AdamW: decay of the mean of squared gradients."""


@dataclass
class Encoded(Generic[Item]):
    """Rows that can be trained on, and what became of the others."""

    items: list[Item] = field(default_factory=list[Item])
    """In the order of the rows."""
    left_out: Counter[str] = field(default_factory=Counter[str])
    """Rows left out, by reason."""
    truncated: int = 0
    """Rows that are kept but lost tokens at their end."""

    def refuse_none(self, needs: str) -> Encoded[Item]:
        """Itself; raises TrainError when no row is left."""
        if self.items:
            return self
        why = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items()) or "there are none"
        raise TrainError(f"No row can be trained on: {why}.", f"A row needs {needs}.")

    def counts(self) -> dict[str, object]:
        """For the metrics of a run."""
        return {"left_out": dict(self.left_out), "truncated_rows": self.truncated}


def training_head(config: MethodConfig) -> MethodConfig:
    """The method, the head always with it: beside an adapter a new head would otherwise stay as it was drawn."""
    if config.lora is None or "head" in config.lora.train_also:
        return MethodConfig(lora=config.lora, parts=config.parts)
    return MethodConfig(lora=replace(config.lora, train_also=(*config.lora.train_also, "head")))


def limit_of(model: Model, max_row_tokens: int | None) -> int:
    """Most tokens of a row: what is asked for, the sentence model's own limit and its context, whichever is least."""
    own = None if model.sentence is None else model.sentence.max_tokens
    return min(n for n in (max_row_tokens, own, model.config.context_length) if n is not None)


def encode_text(model: Model, text: str, pair: str | None, limit: int) -> tuple[Row, bool]:
    """One row in the model's own frame, and whether it lost tokens."""
    tokenizer = model.chat.tokenizer
    row = tokenizer.encode_with_specials(text, pair)
    if len(row[0]) <= limit:
        return row, False
    return tokenizer.encode_with_specials(text, pair, max_tokens=limit), True


def read_rows(model: Model, rows: Sequence[Row]) -> tuple[Tensor, list[int]]:
    """Hidden states (N, D) of rows laid end to end, with gradients where these are on, and the rows' lengths."""
    lengths = [len(ids) for ids, _ in rows]
    ids = torch.tensor([index for ids, _ in rows for index in ids], device=model.device)
    if not model.has_token_types:
        return model.network.rows(ids, lengths), lengths
    types = torch.tensor([kind for _, types in rows for kind in types], device=model.device)
    return model.network.rows(ids, lengths, types=types), lengths
