"""Which question a model is asked: from a config and what kind of network it is to a pure function of a sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from danlu.core.errors import ConfigError
from danlu.data.loader import TokenRows
from danlu.models.generate import head_name, start_id
from danlu.models.heads.lm import LMHead
from danlu.models.model import Model
from danlu.models.network import EncoderDecoder, Network
from danlu.text.tokenizer import TextTokenizer
from danlu.train.objectives import tables
from danlu.train.objectives.asked import Ask, Asked, next_tokens
from danlu.train.objectives.denoise import DenoiseConfig, damage
from danlu.train.objectives.masked import Ids, MaskedConfig, mask_tokens
from danlu.train.objectives.spans import Pair, SpansConfig, hide_spans, missing_tokens, row_length, span_counts

Objective = MaskedConfig | SpansConfig | DenoiseConfig | None
"""None is the next token."""
Kind = Literal["decoder", "encoder", "encoder-decoder"]
_WANTS: dict[type, tuple[str, Kind]] = {
    type(None): ("next tokens", "decoder"),
    MaskedConfig: ("hidden tokens (masked)", "encoder"),
    SpansConfig: ("missing spans (spans)", "encoder-decoder"),
    DenoiseConfig: ("damaged texts (denoise)", "encoder-decoder"),
}
_ARTICLES: dict[Kind, str] = {
    "decoder": "a decoder", "encoder": "an encoder", "encoder-decoder": "an encoder-decoder"
}  # fmt: skip
_FITTING: dict[Kind, str] = {
    "decoder": "Leave masked, spans and denoise out.",
    "encoder": "Use masked: {}.",
    "encoder-decoder": "Use spans: {} or denoise: {}.",
}


@dataclass(frozen=True)
class Chosen:
    """How a model is asked."""

    ask: Ask
    """Makes a question of a sequence."""
    row_tokens: int
    """Most tokens of a row as stored, so that with all that is added it fits."""
    separator: int | None
    """What stands before a document for a model that writes; None where a document begins with a token of its own."""


def choose(model: Model, objective: Objective, sequence_length: int, documents: str) -> Chosen:
    """The question for ``model``. ConfigError when it, or its tokenizer, cannot be asked that."""
    kind, (name, wanted) = kind_of(model), _WANTS[type(objective)]
    if kind != wanted:
        raise ConfigError(f"This model is {_ARTICLES[kind]}; {name} are learnt by {_ARTICLES[wanted]}.", _FITTING[kind])
    if isinstance(objective, MaskedConfig):
        return _masked(model, objective, sequence_length)
    if isinstance(objective, SpansConfig):
        return _spans(model, objective, sequence_length)
    if isinstance(objective, DenoiseConfig):
        return _denoise(model, objective, sequence_length)
    separator = separator_of(model)
    begins = None if documents == "joined" else separator
    goes_on = documents == "chunked"
    return Chosen(lambda rows, _: next_tokens(rows, begins, first_goes_on=goes_on), sequence_length, separator)


def kind_of(model: Model) -> Kind:
    """What a language model is. ConfigError for every other model."""
    network = model.network
    if not isinstance(network, Network) or not isinstance(network.head, LMHead):
        raise ConfigError(f"This model cannot be pre-trained: it has {head_name(model)}.", "Give a language model.")
    if isinstance(network, EncoderDecoder):
        return "encoder-decoder"
    return "decoder" if network.stack.config.is_causal else "encoder"


def separator_of(model: Model) -> int | None:
    """What the tokenize stage puts behind each document, where documents do not begin with a token of their own."""
    if not model.has_tokenizer or model.chat.tokenizer.begin_id is not None:
        return None
    tokenizer = model.chat.tokenizer
    if "<|endoftext|>" in tokenizer.special_ids:
        return tokenizer.special_ids["<|endoftext|>"]
    return tokenizer.special_ids.get(next(iter(tokenizer.end_tokens), ""))


# ---- encoders --------------------------------------------------------------------------------------------------------


def _masked(model: Model, config: MaskedConfig, sequence_length: int) -> Chosen:
    tokenizer, size = model.chat.tokenizer, model.config.vocabulary_size
    mask_id = _mask_id(tokenizer)
    special = tables.is_special(tokenizer, size)
    words = tables.begins_word(tokenizer, size) if config.whole_words else None
    before, after = frame(tokenizer)

    def ask(rows: TokenRows, rng: np.random.Generator) -> Asked:
        framed = [np.concatenate([before, row, after]) for row in bare(rows, before, after)]
        parts = [
            mask_tokens(row, rng, config, mask_id=mask_id, is_special=special, begins_word=words) for row in framed
        ]
        starts = np.cumsum([0, *(row.size for row in framed)])
        return Asked(
            _joined([part.ids for part in parts]),
            tuple(row.size for row in framed),
            _joined([part.places + start for part, start in zip(parts, starts, strict=False)]),
            _joined([part.targets for part in parts]),
        )

    return Chosen(ask, sequence_length - before.size - after.size, None)


def frame(tokenizer: TextTokenizer) -> tuple[Ids, Ids]:
    """What stands before and after every text a model reads: [CLS] and [SEP], or nothing and an end token."""
    ids = np.array(tokenizer.encode_with_specials("")[0], np.int64)
    return (ids[:1], ids[1:2]) if ids.size > 1 else (ids[:0], ids)


def bare(rows: TokenRows, before: Ids, after: Ids) -> list[Ids]:
    """The rows one by one, without what stands around them; empty ones are left out."""
    found: list[Ids] = []
    for row in np.split(rows.ids, np.cumsum(rows.lengths)[:-1]):
        start = before.size if before.size and row[: before.size].tolist() == before.tolist() else 0
        stop = row.size - (after.size if after.size and row[-after.size :].tolist() == after.tolist() else 0)
        if start < stop:
            found.append(row[start:stop])
    return found


def _mask_id(tokenizer: TextTokenizer) -> int:
    if tokenizer.mask_id is None:
        raise ConfigError(
            "The tokenizer has no mask token.", "Add <mask> to its special_tokens, or use a tokenizer that has one."
        )
    return tokenizer.mask_id


# ---- encoder-decoders ------------------------------------------------------------------------------------------------


def _spans(model: Model, config: SpansConfig, sequence_length: int) -> Chosen:
    marks = tables.sentinels(model)
    row_tokens = row_length(sequence_length, config)
    while span_counts(row_tokens, config)[1] > len(marks):
        row_tokens -= 1

    def pair(row: Ids, rng: np.random.Generator) -> Pair:
        return hide_spans(row, missing_tokens(row.size, rng, config), marks)

    return Chosen(_pairs(model, pair, fewest=2), row_tokens, None)


def _denoise(model: Model, config: DenoiseConfig, sequence_length: int) -> Chosen:
    tokenizer, size = model.chat.tokenizer, model.config.vocabulary_size
    mask_id = _mask_id(tokenizer)
    ends = tables.ends_sentence(tokenizer, size) if config.shuffles_sentences else None

    def pair(row: Ids, rng: np.random.Generator) -> Pair:
        return Pair(damage(row, rng, config, mask_id=mask_id, ends_sentence=ends), row)

    return Chosen(_pairs(model, pair, fewest=1), sequence_length - 2, None)


def _pairs(model: Model, pair: Callable[[Ids, np.random.Generator], Pair], *, fewest: int) -> Ask:
    """Source and target in the tokenizer's frame; the decoder reads its start token and what it has written so far.
    Rows of less than ``fewest`` tokens are left out."""
    tokenizer = model.chat.tokenizer
    start = np.array([start_id(model)], np.int64)
    before, after = frame(tokenizer)
    if not after.size:
        after = np.array(sorted(tokenizer.end_ids)[:1], np.int64)

    def ask(rows: TokenRows, rng: np.random.Generator) -> Asked:
        made = [pair(row, rng) for row in bare(rows, before, after) if row.size >= fewest]
        sources = [np.concatenate([before, one.source, after]) for one in made]
        targets = [np.concatenate([before, one.target, after]) for one in made]
        ids = _joined([np.concatenate([start, target[:-1]]) for target in targets])
        return Asked(
            ids,
            tuple(target.size for target in targets),
            np.arange(ids.size),
            _joined(targets),
            _joined(sources),
            tuple(source.size for source in sources),
        )

    return ask


def _joined(parts: Sequence[Ids]) -> Ids:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
