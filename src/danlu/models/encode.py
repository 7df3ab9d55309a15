"""What encoders are asked: vectors, labels, tagged spans. Texts in, plain values out.

Rows are sorted by length and packed under a budget of tokens, so no linear reads padding; answers come back in the
order of the texts and do not depend on what a text was packed with (fp32: within 1e-5). A text longer than the model's
limit loses tokens at its end – of a pair, the longer text does – or is refused with ``truncate=False``.
Knows no family and trains nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from tokenizers import Encoding
from torch import Tensor, nn

from danlu.core.errors import ModelError, RequestError
from danlu.models.attend import PackedAttend, row_positions
from danlu.models.grouped_attend import GroupedAttend
from danlu.models.heads.classify import ClassifyHead
from danlu.models.heads.embed import EmbedHead
from danlu.models.heads.probe import ProbeHead
from danlu.models.heads.tag import TagHead
from danlu.models.model import Model
from danlu.models.native.readers import read_tower
from danlu.models.network import Network
from danlu.models.pair import PairConfig, PairNetwork, pad_text
from danlu.models.sentence import SentenceConfig
from danlu.models.spans import Span, merge_tags

PACK_TOKENS = 4096
"""Tokens of one pass unless asked otherwise: enough to keep a machine busy, little enough for its memory."""

Head = TypeVar("Head", bound=nn.Module)
Text = str | tuple[str, str] | list[int]
"""A text, a pair that the model reads together, or token ids, special ones among them."""
Row = tuple[list[int], list[int]]
"""Ids and types of one row's tokens."""


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label of a text."""

    label: str
    """Its name."""
    probability: float
    """How likely it is; labels of a multi-label model need not sum to 1."""


def embed(
    model: Model,
    texts: Sequence[Text],
    *,
    prompt: str | None = None,
    truncate: bool = True,
    pack_tokens: int = PACK_TOKENS,
) -> Tensor:
    """A vector for each text: fp32 (B, P). ``prompt`` names one of the model's own ("query", "passage").

    Raises ModelError when the model has no embedding head or no such prompt, RequestError for a text it cannot read.
    """
    rows = embed_rows(model, texts, prompt=prompt, truncate=truncate)
    return vectors_of(model, run_rows(model, rows, pack_tokens))


def classify(
    model: Model, texts: Sequence[Text], *, truncate: bool = True, pack_tokens: int = PACK_TOKENS
) -> list[list[LabelScore]]:
    """All labels of each text or pair, the most likely first.

    Raises ModelError when the model has no classification head, RequestError for a text it cannot read.
    """
    _head(model, ClassifyHead, "classifies nothing", "Use a …ForSequenceClassification model.")
    rows = encode_texts(model, texts, truncate=truncate)
    return labels_of(model, run_rows(model, rows, pack_tokens))


def rank(
    model: Model, query: str, documents: Sequence[str], *, truncate: bool = True, pack_tokens: int = PACK_TOKENS
) -> Tensor:
    """How well each document answers the query, 0 to 1, by a cross-encoder that reads both: fp32 (B,).

    The sigmoid of its one logit, or the share of its second label (Nogueira & Cho 2019). Raises ModelError when the
    model has more labels.
    """
    relevance_label(model)
    rows = encode_texts(model, [(query, document) for document in documents], truncate=truncate)
    return relevance_of(model, run_rows(model, rows, pack_tokens))


def tag(
    model: Model, texts: Sequence[str], *, truncate: bool = True, pack_tokens: int = PACK_TOKENS
) -> list[list[Span]]:
    """Spans of each text in characters: what B-X and I-X tags (or plain X) mark, pieces of a word following its first.

    Raises ModelError when the model has no tagging head, RequestError for a text it cannot read.
    """
    rows, offsets = tag_rows(model, texts, truncate=truncate)
    return spans_of(model, texts, offsets, run_rows(model, rows, pack_tokens))


# the same in parts: what is read (rows), what a pass makes of each row, and what that says


def embed_rows(
    model: Model, texts: Sequence[Text], *, prompt: str | None = None, truncate: bool = True
) -> list[Row]:  # fmt: skip
    """Texts as ``embed`` reads them; token ids stay as they are."""
    embedding_head(model)
    sentence = model.sentence or SentenceConfig()
    before = sentence.prompt(prompt)
    return encode_texts(model, [_prompted(text, before, model.sentence) for text in texts], truncate=truncate)


def tag_rows(
    model: Model, texts: Sequence[str], *, truncate: bool = True
) -> tuple[list[Row], list[list[tuple[int, int]]]]:
    """Texts as ``tag`` reads them, and the characters that each token stands for."""
    _head(model, TagHead, "tags nothing", "Use a …ForTokenClassification model.")
    read = _framed(model, texts, truncate)
    return [(one.ids, [0] * len(one.ids)) for one in read], [one.offsets for one in read]


def embedding_head(model: Model) -> EmbedHead | ProbeHead:
    """What makes vectors of texts or images; raises ModelError when nothing does."""
    head = text_network(model).head
    if not isinstance(head, EmbedHead | ProbeHead):
        raise ModelError("This model embeds nothing.", "Use a sentence model.")
    return head


def relevance_label(model: Model) -> int:
    """The label that says how well the second text of a pair answers the first: the only one, or the second of two.

    Raises ModelError when there is none.
    """
    head = _head(model, ClassifyHead, "ranks nothing", "Use a cross-encoder.")
    if len(head.config.labels) > 2:
        raise ModelError(
            f"This model has {len(head.config.labels)} labels.",
            "Ranking needs a model with one or two, a cross-encoder.",
        )
    return len(head.config.labels) - 1


def vectors_of(model: Model, outputs: Sequence[Tensor]) -> Tensor:
    """Vectors (P,) of rows as ``embed`` gives them: fp32 (B, P)."""
    head = embedding_head(model)
    if not outputs:
        return torch.empty(0, vector_width(model))
    whole = torch.stack(list(outputs)).float()
    return nn.functional.normalize(whole, dim=-1) if head.config.normalise else whole  # bf16 rounds lengths


def vector_width(model: Model) -> int:
    """P: numbers of a vector."""
    return getattr(embedding_head(model).config, "projection", None) or text_network(model).config.width


def labels_of(model: Model, logits: Sequence[Tensor]) -> list[list[LabelScore]]:
    """Logits (C,) of rows as ``classify`` gives them."""
    head = _head(model, ClassifyHead, "classifies nothing", "Use a …ForSequenceClassification model.")
    if not logits:
        return []
    found: list[list[LabelScore]] = []
    for shares in head.probabilities(torch.stack(list(logits))).tolist():
        scored = zip(head.config.labels, shares, strict=True)
        found.append(sorted((LabelScore(*pair) for pair in scored), key=lambda one: -one.probability))
    return found


def relevance_of(model: Model, logits: Sequence[Tensor]) -> Tensor:
    """Logits (C,) of pairs as ``rank`` gives them: fp32 (B,)."""
    label = relevance_label(model)
    head = _head(model, ClassifyHead, "ranks nothing", "Use a cross-encoder.")
    if not logits:
        return torch.empty(0)
    whole = torch.stack(list(logits)).float()
    return (head.probabilities(whole) if label else whole.sigmoid())[:, label]


def spans_of(
    model: Model, texts: Sequence[str], offsets: Sequence[Sequence[tuple[int, int]]], logits: Sequence[Tensor]
) -> list[list[Span]]:
    """Logits (T, C) of rows as ``tag`` gives them."""
    head = _head(model, TagHead, "tags nothing", "Use a …ForTokenClassification model.")
    return [
        merge_tags(text, places, head.config.labels, scores.float().softmax(dim=-1))
        for text, places, scores in zip(texts, offsets, logits, strict=True)
    ]


def hidden_states(model: Model, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> Tensor:
    """Hidden states of padded rows: ids, mask (1 for real tokens, anywhere in a row), types: (B, T) → (B, T, D).

    Positions count real tokens only, so the side of the padding does not matter; padding comes back as zeros.
    """
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    if not bool(real.any(dim=1).all()):
        raise RequestError("A row has no real token.", "Leave empty rows out.")
    extra = {} if types is None else {"types": types[real]}
    with torch.no_grad():
        packed = model.network.rows(ids[real], real.sum(dim=1).tolist(), **extra)
    hidden = packed.new_zeros(*ids.shape, packed.shape[-1])
    hidden[real] = packed
    return hidden


def encode_texts(model: Model, texts: Sequence[Text], *, truncate: bool = True) -> list[Row]:
    """Texts and pairs in the model's own frame, token ids as they are.

    Raises RequestError for one that is too long or has no token, or an id that the model does not have.
    """
    found: list[Row | None] = [None] * len(texts)
    written: list[tuple[int, str | tuple[str, str]]] = []
    for number, text in enumerate(texts):
        if isinstance(text, list):
            found[number] = _given(model, number, text, truncate)
        else:
            written.append((number, text))
    framed = _framed(model, [text for _, text in written], truncate, [number for number, _ in written])
    for (number, _), one in zip(written, framed, strict=True):
        found[number] = (one.ids, one.type_ids)
    rows = [row for row in found if row is not None]
    config: object = model.network.config
    if not isinstance(config, PairConfig):
        return rows
    whole = [pad_text(ids, config, model.chat.tokenizer.pad_id) for ids, _ in rows]
    return [(ids, [0] * len(ids)) for ids in whole]


def run_rows(
    model: Model, rows: Sequence[Row], pack_tokens: int = PACK_TOKENS, *, num_threads: int | None = None
) -> list[Tensor]:
    """What the model makes of each row (``read_rows``), pack by pack. Order is kept."""
    answers: list[Tensor | None] = [None] * len(rows)
    for pack in packs([len(ids) for ids, _ in rows], pack_tokens):
        found = read_rows(model, [rows[number] for number in pack], num_threads=num_threads)
        for number, answer in zip(pack, found, strict=True):
            answers[number] = answer
    return [answer for answer in answers if answer is not None]


@torch.no_grad()
def read_rows(model: Model, rows: Sequence[Row], *, num_threads: int | None = None) -> list[Tensor]:
    """One pass: what the model's head makes of each row, a vector (P,), logits (C,), or logits of its tokens (T, C).

    Without a head it is the row's hidden states (T, D). ``num_threads`` is for the kernels in C, where they read a
    packed model; None for as many as torch uses.
    """
    network = model.network
    lengths = [len(ids) for ids, _ in rows]
    ids = torch.tensor(list(itertools.chain.from_iterable(ids for ids, _ in rows)), device=model.device)
    if isinstance(network, PairNetwork):
        return list(network.embed_texts(ids, lengths))
    extra: dict[str, Tensor] = {}
    if model.has_token_types:
        types = itertools.chain.from_iterable(types for _, types in rows)
        extra = {"types": torch.tensor(list(types), device=model.device)}
    hidden, head = _hidden(model, network, ids, lengths, extra, num_threads), network.head
    if head is None or isinstance(head, TagHead):
        return list((hidden if head is None else head(hidden)).split(lengths))
    return list(head(hidden, lengths))


def _hidden(
    model: Model,
    network: Network,
    ids: Tensor,
    lengths: Sequence[int],
    extra: dict[str, Tensor],
    num_threads: int | None,
) -> Tensor:
    """Hidden states of rows laid end to end (N, D), by the kernels in C where they know the network."""
    if model.device.type != "cpu":
        return network(ids, row_positions(lengths).to(model.device), PackedAttend(lengths, model.device), **extra)
    if model.is_packed:
        found = read_tower(network, ids, lengths, model.activation_dtype, num_threads=num_threads, **extra)
        if found is not None:
            return found
    return network(ids, row_positions(lengths), GroupedAttend(lengths), **extra)


def packs(lengths: Sequence[int], pack_tokens: int) -> list[list[int]]:
    """Numbers of rows that run together: of like length, at most ``pack_tokens`` tokens unless one row is longer."""
    found: list[list[int]] = []
    room = 0
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if not found or lengths[number] > room:
            found.append([])
            room = pack_tokens
        found[-1].append(number)
        room -= lengths[number]
    return found


def _head(model: Model, kind: type[Head], lacks: str, hint: str) -> Head:
    """The model's head, when it is of this kind."""
    head = model.network.head
    if not isinstance(head, kind):
        raise ModelError(f"This model {lacks}.", hint)
    return head


def text_network(model: Model) -> Network:
    """What reads texts: of a pair, one of both."""
    return model.network.text if isinstance(model.network, PairNetwork) else model.network


def text_limit(model: Model) -> int:
    """Most tokens of a text, special ones counted."""
    context = text_network(model).config.context_length
    own = None if model.sentence is None else model.sentence.max_tokens
    return min(own or context, context)


def _prompted(text: Text, before: str, sentence: SentenceConfig | None) -> Text:
    """A text as a sentence model wants it; other models want theirs as it is."""
    if sentence is None or not isinstance(text, str):
        return text
    whole = before + text.strip()
    return whole.lower() if sentence.lower_case else whole


def _framed(
    model: Model, texts: Sequence[str | tuple[str, str]], truncate: bool, numbers: Sequence[int] | None = None
) -> list[Encoding]:
    """Texts and pairs with their frame, checked; ``numbers`` are what errors call them."""
    found = model.chat.tokenizer.encode_framed(texts, max_tokens=text_limit(model) if truncate else None)
    for number, one in zip(numbers or range(len(found)), found, strict=True):
        _check_length(model, number, len(one.ids))
    return found


def _given(model: Model, number: int, ids: list[int], truncate: bool) -> Row:
    """Token ids as a row."""
    size = text_network(model).config.vocabulary_size
    wrong = next((index for index in ids if not 0 <= index < size), None)
    if wrong is not None:
        raise RequestError(f"Text {number} has the token id {wrong}.", f"Ids of this model are 0 to {size - 1}.")
    row = ids[: text_limit(model)] if truncate else ids
    _check_length(model, number, len(row))
    return row, [0] * len(row)


def _check_length(model: Model, number: int, num_tokens: int) -> None:
    if not num_tokens:
        raise RequestError(f"Text {number} is empty.", "Leave it out.")
    if num_tokens > (limit := text_limit(model)):
        raise RequestError(
            f"Text {number} has {num_tokens} tokens, the model reads {limit}.",
            "Shorten it, or allow truncation.",
            code="context_length_exceeded",
        )
