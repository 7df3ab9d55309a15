"""Tags of tokens become spans of characters. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

_BEGINS, _ENDS = {"B", "S", "U"}, {"E", "L", "S", "U"}
_PREFIXES = _BEGINS | _ENDS | {"I", "M"}
OUTSIDE = "O"
_IDEOGRAPHS = (range(0x3400, 0x4DC0), range(0x4E00, 0xA000), range(0xF900, 0xFB00), range(0x20000, 0x40000))


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of text with one label."""

    start: int
    """First character."""
    end: int
    """Character after the last."""
    label: str
    """What it is, without B- and I-."""
    score: float
    """Mean probability of its words' tags."""


def merge_tags(
    text: str, offsets: Sequence[tuple[int, int]], labels: Sequence[str], probabilities: Tensor
) -> list[Span]:  # fmt: skip
    """Spans of one text. ``offsets`` are the characters of each token, empty for special ones; probabilities: (T, C).

    The first piece of a word speaks for all of it. B- (also S-, U-) begins a span, E- and L- end one; any other tag
    goes on with the span of the same label right before it, or begins one (the lenient reading of CoNLL's scorer).
    """
    spans: list[Span] = []
    counts: list[int] = []
    is_open, reached = False, 0
    best = probabilities.max(dim=-1)
    for (start, end), score, choice in zip(offsets, best.values.tolist(), best.indices.tolist(), strict=True):
        if start == end:
            continue
        if start == reached and is_one_word(text, start):
            if spans and spans[-1].end == reached:
                spans[-1] = Span(spans[-1].start, end, spans[-1].label, spans[-1].score)
            reached = end
            continue
        reached = end
        prefix, label = _parts(labels[int(choice)])
        if label == OUTSIDE:
            is_open = False
            continue
        if is_open and prefix not in _BEGINS and spans[-1].label == label:
            counts[-1] += 1
            mean = spans[-1].score + (score - spans[-1].score) / counts[-1]
            spans[-1] = Span(spans[-1].start, end, label, mean)
        else:
            spans.append(Span(start, end, label, score))
            counts.append(1)
        is_open = prefix not in _ENDS
    return spans


def _parts(tag: str) -> tuple[str, str]:
    """ "B-PER" → B, PER; a tag without a prefix goes on where it can."""
    prefix, dash, label = tag.partition("-")
    return (prefix, label) if dash and prefix in _PREFIXES else ("I", tag)


def is_one_word(text: str, place: int) -> bool:
    """Whether the characters on both sides of a place belong to one word; each Chinese character is a word."""
    if place == 0 or place >= len(text):
        return False
    before, after = text[place - 1], text[place]
    return all(character.isalnum() and not is_ideograph(character) for character in (before, after))


def is_ideograph(character: str) -> bool:
    return any(ord(character) in block for block in _IDEOGRAPHS)
