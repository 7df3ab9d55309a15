"""Rows with tagged words as ids and targets: {tokens, tags} or {text, spans: [{start, end, label}]}.

The first piece of a word is supervised and speaks for the word, as it does in serving (models/spans): there a word is
a run of letters and digits, a Chinese character, or one sign. Knows the head that tags are for, and no training.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from danlu.core.errors import DataError, TrainError
from danlu.models.encode import Row
from danlu.models.heads.tag import TagHead
from danlu.models.model import Model
from danlu.models.rehead import NewTagger
from danlu.models.spans import OUTSIDE, is_ideograph, is_one_word
from danlu.train.texts import Encoded, limit_of

Stretch = tuple[int, int, str]
"""First character, character after the last, and what is said of it."""


@dataclass(frozen=True)
class Tagged:
    """One row to learn."""

    row: Row
    """Ids and types."""
    places: tuple[int, ...]
    """Tokens that are supervised: the first of each word."""
    tags: tuple[int, ...]
    """Index of the tag of each."""


def tags_of(rows: Iterable[Mapping[str, Any]], names: Sequence[str] = ()) -> NewTagger:
    """The head that rows ask for, unless its ``names`` are given. Raises TrainError when there are not two tags."""
    found = set(names)
    for row in rows if not names else ():
        for tag in map(str, row.get("tags") or ()):
            found |= {tag, f"I-{tag[2:]}"} if tag.startswith("B-") else {tag}
        for span in row.get("spans") or ():
            found |= {OUTSIDE, f"B-{span['label']}", f"I-{span['label']}"}
    if len(found) < 2:
        raise TrainError(f"The rows have {len(found)} different tags.", "Give rows with tags, or with spans.")
    return NewTagger(labels=tuple(names) or tuple(sorted(found, key=lambda tag: (tag != OUTSIDE, tag))))


def encode_rows(rows: Iterable[Mapping[str, Any]], model: Model, max_row_tokens: int | None = None) -> Encoded[Tagged]:
    """Rows as ids and targets for the tags of the model's head.

    Left out: rows without a word (``empty``), without tags or spans (``no_tags``), or with a tag that the head does not
    have (``unknown_tag``). Raises DataError for words and tags of different number, and for spans outside their text or
    inside each other.
    """
    labels = {label: index for index, label in enumerate(tag_head(model).config.labels)}
    limit, encoded = limit_of(model, max_row_tokens), Encoded[Tagged]()
    for row in rows:
        if row.get("tags") is None and row.get("spans") is None:
            encoded.left_out["no_tags"] += 1
            continue
        text, stretches = _of_words(row) if row.get("tags") is not None else _of_spans(row)
        tokenizer = model.chat.tokenizer
        ids, offsets = tokenizer.encode_with_offsets(text, with_specials=True)
        if len(ids) > limit:
            encoded.truncated += 1
            ids, offsets = tokenizer.encode_with_offsets(text, with_specials=True, max_tokens=limit)
        placed = _placed(text, offsets, stretches)
        if not placed:
            encoded.left_out["empty"] += 1
        elif any(tag not in labels for _, tag in placed):
            encoded.left_out["unknown_tag"] += 1
        else:
            places, tags = zip(*((place, labels[tag]) for place, tag in placed), strict=True)
            encoded.items.append(Tagged((ids, [0] * len(ids)), places, tags))
    return encoded.refuse_none("tokens and tags, or text and spans")


def tag_head(model: Model) -> TagHead:
    """The model's head; raises TrainError when it is of another kind."""
    head = model.network.head
    if not isinstance(head, TagHead):
        raise TrainError("This model has no tagging head.", "Put one on: with_head(model, tags_of(rows)).")
    return head


def _of_words(row: Mapping[str, Any]) -> tuple[str, list[Stretch]]:
    """Words as the text they stand for: a space between them, but none between Chinese characters."""
    words, tags = [str(word) for word in row.get("tokens") or ()], [str(tag) for tag in row["tags"]]
    if len(words) != len(tags):
        raise DataError(f"A row has {len(words)} tokens and {len(tags)} tags.", "Give one tag for each token.")
    text, stretches = "", list[Stretch]()
    for word, tag in zip(words, tags, strict=True):
        if text and word and not (is_ideograph(text[-1]) and is_ideograph(word[0])):
            text += " "
        stretches.append((len(text), len(text) + len(word), tag))
        text += word
    return text, stretches


def _of_spans(row: Mapping[str, Any]) -> tuple[str, list[Stretch]]:
    """Spans as stretches tagged B-X; everything between them is outside."""
    text = str(row.get("text") or "")
    spans = sorted((int(span["start"]), int(span["end"]), str(span["label"])) for span in row["spans"])
    for start, end, label in spans:
        if not 0 <= start < end <= len(text):
            raise DataError(f"A span {label} is {start} to {end} of a text of {len(text)}.", "Count characters from 0.")
    for one, other in itertools.pairwise(spans):
        if one[1] > other[0]:
            raise DataError(f"The spans {one} and {other} overlap.", "Keep one of them.")
    return text, [(start, end, f"B-{label}") for start, end, label in spans]


def _placed(text: str, offsets: Sequence[tuple[int, int]], stretches: Sequence[Stretch]) -> list[tuple[int, str]]:
    """The first token of each word, and its tag. Words after the first of a stretch go on with it: I- after B-."""
    placed: list[tuple[int, str]] = []
    reached, number, begun = 0, 0, -1
    for place, (start, end) in enumerate(offsets):
        if start == end:
            continue
        is_rest = start == reached and is_one_word(text, start)
        reached = end
        if is_rest:
            continue
        first = next((i for i in range(start, end) if not text[i].isspace()), start)
        while number < len(stretches) and stretches[number][1] <= first:
            number += 1
        if number == len(stretches) or stretches[number][0] > first:
            placed.append((place, OUTSIDE))
            continue
        tag = stretches[number][2]
        placed.append((place, f"I-{tag[2:]}" if number == begun and tag.startswith("B-") else tag))
        begun = number
    return placed
