"""Rows of a source and what is to be written for it, as ids: {source, target}. Knows no training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from danlu.core.errors import TrainError
from danlu.models.generate import check_writes
from danlu.models.model import Model
from danlu.models.network import EncoderDecoder
from danlu.train.texts import Encoded


@dataclass(frozen=True)
class SourceTarget:
    """One row to learn."""

    source: list[int]
    """Ids the encoder reads."""
    target: list[int]
    """Ids to write, with the token that ends answers."""
    text: str
    """The whole target, to compare with."""

    @property
    def num_tokens(self) -> int:
        """Tokens on both sides."""
        return len(self.source) + len(self.target)


def encode_rows(
    rows: Iterable[Mapping[str, Any]],
    model: Model,
    *,
    max_source_tokens: int | None = None,
    max_target_tokens: int | None = None,
    source_prefix: str = "",
    target_prefix: str = "",
) -> Encoded[SourceTarget]:
    """Rows as ids, both sides in the model's own frame; a target ends with the token that ends answers.

    Prefixes are put before every source and target. What is longer loses its end.

    Left out: rows with an empty side (``empty``). Raises TrainError when no row is left or the model is none of this
    kind.
    """
    network, encoded = encoder_decoder(model), Encoded[SourceTarget]()
    tokenizer, context = model.chat.tokenizer, network.encoder.stack.config.context_length
    most_source = min(max_source_tokens or context, context)
    most_target = min(max_target_tokens or model.config.context_length, model.config.context_length)
    ends = model.generation.end_ids | tokenizer.target.end_ids
    for row in rows:
        source, target = row.get("source"), row.get("target")
        if not all(isinstance(text, str) and text.strip() for text in (source, target)):
            encoded.left_out["empty"] += 1
            continue
        ids, _ = tokenizer.encode_with_specials(source_prefix + str(source))
        answer, _ = tokenizer.target.encode_with_specials(target_prefix + str(target))
        if ends and answer[-1] not in ends:
            answer.append(min(ends))
        if len(ids) > most_source or len(answer) > most_target:
            encoded.truncated += 1
            ids, _ = tokenizer.encode_with_specials(source_prefix + str(source), max_tokens=most_source)
            answer = [*answer[: most_target - 1], answer[-1]] if len(answer) > most_target else answer
        encoded.items.append(SourceTarget(ids, answer, str(target)))
    return encoded.refuse_none("source and target")


def encoder_decoder(model: Model) -> EncoderDecoder:
    """The model's network; raises TrainError when it is of another kind."""
    if not isinstance(model.network, EncoderDecoder):
        raise TrainError("This model has no encoder and decoder.", "Use a model such as T5, BART or Marian; or sft.")
    check_writes(model)
    return model.network
