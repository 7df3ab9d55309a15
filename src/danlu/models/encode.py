"""What encoders are asked: vectors, labels, tagged spans, hidden words. Texts in, plain values out.

Rows are sorted by length and packed under a budget of tokens, so no linear reads padding; answers come back in the
order of the texts and do not depend on what a text was packed with (fp32: within 1e-5). A text longer than the model's
limit loses tokens at its end – of a pair, the longer text does – or is refused with ``truncate=False``.
Knows no family and trains nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from danlu.core.errors import ModelError, RequestError
from danlu.models.heads.classify import ClassifyHead
from danlu.models.heads.embed import EmbedHead
from danlu.models.heads.lm import LMHead
from danlu.models.heads.tag import TagHead
from danlu.models.model import Model
from danlu.models.sentence import SentenceConfig
from danlu.models.spans import Span, merge_tags

PACK_TOKENS = 4096
"""Tokens of one pass unless asked otherwise: enough to keep a machine busy, little enough for its memory."""

Head = TypeVar("Head", bound=nn.Module)
Text = str | tuple[str, str]
"""A text, or a pair that the model reads together."""
Row = tuple[list[int], list[int]]
"""Ids and types of one row's tokens."""


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label of a text."""

    label: str
    """Its name."""
    probability: float
    """How likely it is; labels of a multi-label model need not sum to 1."""


@dataclass(frozen=True, slots=True)
class Filling:
    """One word that may stand in a gap."""

    text: str
    """The token as text."""
    token_id: int
    """Its id."""
    probability: float
    """How likely it is among all tokens."""


def embed(
    model: Model,
    texts: Sequence[str],
    *,
    prompt: str | None = None,
    truncate: bool = True,
    pack_tokens: int = PACK_TOKENS,
) -> Tensor:
    """A vector for each text: fp32 (B, P). ``prompt`` names one of the model's own ("query", "passage").

    Raises ModelError when the model has no embedding head or no such prompt, RequestError for a text it cannot read.
    """
    head = _head(model, EmbedHead, "embeds nothing", "Use a sentence model.")
    sentence = model.sentence or SentenceConfig()
    before = sentence.prompt(prompt)
    read = [before + text.strip() for text in texts] if model.sentence is not None else list(texts)
    if sentence.lower_case:
        read = [text.lower() for text in read]
    rows = encode_texts(model, read, truncate=truncate)
    vectors = run_rows(model, rows, lambda hidden, lengths: list(head(hidden, lengths)), pack_tokens)
    if not vectors:
        return torch.empty(0, head.config.projection or model.config.width)
    whole = torch.stack(vectors).float()
    return nn.functional.normalize(whole, dim=-1) if head.config.normalise else whole  # bf16 rounds lengths


def classify(
    model: Model, texts: Sequence[Text], *, truncate: bool = True, pack_tokens: int = PACK_TOKENS
) -> list[list[LabelScore]]:
    """All labels of each text or pair, the most likely first.

    Raises ModelError when the model has no classification head, RequestError for a text it cannot read.
    """
    head = _head(model, ClassifyHead, "classifies nothing", "Use a …ForSequenceClassification model.")
    found: list[list[LabelScore]] = []
    for logits in _class_logits(model, head, texts, truncate, pack_tokens):
        scored = zip(head.config.labels, head.probabilities(logits).tolist(), strict=True)
        found.append(sorted((LabelScore(*pair) for pair in scored), key=lambda one: -one.probability))
    return found


def rank(
    model: Model, query: str, documents: Sequence[str], *, truncate: bool = True, pack_tokens: int = PACK_TOKENS
) -> Tensor:
    """How well each document answers the query, 0 to 1, by a cross-encoder that reads both: fp32 (B,).

    The sigmoid of its one logit (Nogueira & Cho 2019). Raises ModelError when the model has several labels.
    """
    head = _head(model, ClassifyHead, "ranks nothing", "Use a cross-encoder.")
    if len(head.config.labels) != 1:
        raise ModelError(
            f"This model has {len(head.config.labels)} labels.", "Ranking needs a model with one, a cross-encoder."
        )
    pairs = [(query, document) for document in documents]
    logits = _class_logits(model, head, pairs, truncate, pack_tokens)
    return torch.cat(logits).float().sigmoid() if logits else torch.empty(0)


def tag(
    model: Model, texts: Sequence[str], *, truncate: bool = True, pack_tokens: int = PACK_TOKENS
) -> list[list[Span]]:
    """Spans of each text in characters: what B-X and I-X tags (or plain X) mark, pieces of a word following its first.

    Raises ModelError when the model has no tagging head, RequestError for a text it cannot read.
    """
    head = _head(model, TagHead, "tags nothing", "Use a …ForTokenClassification model.")
    tokenizer, limit = model.chat.tokenizer, _limit(model)
    read = [tokenizer.encode_with_offsets(text, with_specials=True, max_tokens=limit) for text in texts]
    if not truncate:
        encode_texts(model, texts, truncate=False)
    rows = [(ids, [0] * len(ids)) for ids, _ in read]
    logits = run_rows(model, rows, lambda hidden, lengths: list(head(hidden).split(lengths)), pack_tokens)
    return [
        merge_tags(text, offsets, head.config.labels, scores.float().softmax(dim=-1))
        for text, (_, offsets), scores in zip(texts, read, logits, strict=True)
    ]


def fill_mask(model: Model, text: str, *, top: int = 5) -> list[list[Filling]]:
    """For each gap, the most likely tokens. A gap is written as the tokenizer's own mask, "[MASK]" or "<mask>".

    Raises ModelError when the model is no masked language model, RequestError when there is no gap.
    """
    head = _head(model, LMHead, "fills no gaps", "Use a …ForMaskedLM model.")
    tokenizer = model.chat.tokenizer
    mask_id = tokenizer.mask_id
    if model.stack_config.is_causal or mask_id is None:
        raise ModelError("This model fills no gaps.", "Use a …ForMaskedLM model with a mask token.")
    mask = tokenizer.roles["mask_token"]
    if mask not in text:
        raise RequestError(f"The text has no {mask}.", f"Write {mask} where a word is to be found.")
    ids = _with_gaps(model, text.split(mask), mask_id)
    gaps = [place for place, index in enumerate(ids) if index == mask_id]
    hidden = run_rows(model, [(ids, [0] * len(ids))], lambda hidden, lengths: [hidden], len(ids))[0]
    with torch.no_grad():
        best = head(hidden[gaps]).float().softmax(dim=-1).topk(top)
    return [
        [Filling(tokenizer.decode([index]).strip(), index, share) for index, share in zip(*found, strict=True)]
        for found in zip(best.indices.tolist(), best.values.tolist(), strict=True)
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
    """Texts and pairs in the model's own frame; raises RequestError for one that is too long or has no token."""
    tokenizer, limit = model.chat.tokenizer, _limit(model)
    rows: list[Row] = []
    for number, text in enumerate(texts):
        first, second = text if isinstance(text, tuple) else (text, None)
        row = tokenizer.encode_with_specials(first, second, max_tokens=limit if truncate else None)
        if not row[0]:
            raise RequestError(f"Text {number} is empty.", "Leave it out.")
        if len(row[0]) > limit:
            raise RequestError(
                f"Text {number} has {len(row[0])} tokens, the model reads {limit}.", "Shorten it, or allow truncation."
            )
        rows.append(row)
    return rows


def run_rows(
    model: Model,
    rows: Sequence[Row],
    read: Callable[[Tensor, list[int]], Sequence[Tensor]],
    pack_tokens: int = PACK_TOKENS,
) -> list[Tensor]:
    """Run rows pack by pack; ``read`` makes one tensor a row of hidden states (N, D) and lengths. Order is kept."""
    network, has_types = model.network, model.has_token_types
    answers: list[Tensor | None] = [None] * len(rows)
    for pack in packs([len(ids) for ids, _ in rows], pack_tokens):
        lengths = [len(rows[number][0]) for number in pack]
        ids = torch.tensor([i for number in pack for i in rows[number][0]], device=model.device)
        types = torch.tensor([i for number in pack for i in rows[number][1]], device=model.device)
        with torch.no_grad():
            hidden = network.rows(ids, lengths, **({"types": types} if has_types else {}))
            found = read(hidden, lengths)
        for number, answer in zip(pack, found, strict=True):
            answers[number] = answer
    return [answer for answer in answers if answer is not None]


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


def _class_logits(
    model: Model, head: ClassifyHead, texts: Sequence[Text], truncate: bool, pack_tokens: int
) -> list[Tensor]:  # fmt: skip
    rows = encode_texts(model, texts, truncate=truncate)
    return run_rows(model, rows, lambda hidden, lengths: list(head(hidden, lengths)), pack_tokens)


def _head(model: Model, kind: type[Head], lacks: str, hint: str) -> Head:
    """The model's head, when it is of this kind."""
    head = model.network.head
    if not isinstance(head, kind):
        raise ModelError(f"This model {lacks}.", hint)
    return head


def _limit(model: Model) -> int:
    """Most tokens of a text, special ones counted."""
    own = None if model.sentence is None else model.sentence.max_tokens
    return min(own or model.config.context_length, model.config.context_length)


def _with_gaps(model: Model, parts: Sequence[str], mask_id: int) -> list[int]:
    """Ids of parts with a mask between them, in the model's frame; parts are read as if each began behind the mask."""
    tokenizer = model.chat.tokenizer
    token = tokenizer.backend.get_added_tokens_decoder()[mask_id]
    ids: list[int] = []
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        text = part.rstrip() if token.lstrip and not last else part
        text = text.lstrip() if token.rstrip and number else text
        again = number == 0 or tokenizer.prefix == "always"
        ids += tokenizer.encode(text) if again else tokenizer.encode_rest(text)
        ids += [] if last else [mask_id]
    sample = tokenizer.encode("a")
    frame, _ = tokenizer.encode_with_specials("a")
    start = next(i for i in range(len(frame)) if frame[i : i + len(sample)] == sample)
    ids = [*frame[:start], *ids, *frame[start + len(sample) :]]
    if len(ids) > _limit(model):
        raise RequestError(f"The text has {len(ids)} tokens, the model reads {_limit(model)}.", "Shorten it.")
    return ids
