"""Missing spans of T5 (Raffel et al. 2020, section 3.1.4): each becomes one sentinel; the target says what stood there.

    source   the <0> sat <1> mat          target   <0> cat <1> on the <end>

As in the published code, numbers of hidden tokens and spans follow from the length, and only where they lie is drawn.
Its targets have no closing sentinel, and neither do ours. Knows ids, no text and no batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from danlu.core.errors import ConfigError
from danlu.train.objectives.masked import Flags, Ids, check_share


@dataclass(frozen=True, kw_only=True)
class SpansConfig:
    """Learn to fill in missing spans."""

    share: float = 0.15
    """Share of tokens that are missing."""
    mean_length: float = 3.0
    """Tokens of a span on average."""

    def __post_init__(self) -> None:
        check_share("share", self.share)
        if self.mean_length < 1:
            raise ConfigError(f"mean_length is {self.mean_length}.", "Use 1 or more.")


@dataclass(frozen=True)
class Pair:
    """What an encoder-decoder reads and writes."""

    source: Ids
    """(S,)."""
    target: Ids
    """(U,)."""


def span_counts(length: int, config: SpansConfig) -> tuple[int, int]:
    """Missing tokens and spans of a row of ``length`` tokens, two at least."""
    assert length >= 2, "one token cannot be told from nothing"
    missing = min(max(round(length * config.share), 1), length - 1)
    spans = max(round(missing / config.mean_length), 1)
    return missing, min(spans, missing, length - missing)


def pair_lengths(length: int, config: SpansConfig) -> tuple[int, int]:
    """Tokens of source and target made of a row of ``length``, both with an end token."""
    missing, spans = span_counts(length, config)
    return length - missing + spans + 1, missing + spans + 1


def row_length(source_length: int, config: SpansConfig) -> int:
    """The longest row whose source, end token included, has at most ``source_length`` tokens."""
    length = max(2, source_length)
    while pair_lengths(length + 1, config)[0] <= source_length:
        length += 1
    return length


def missing_tokens(length: int, rng: np.random.Generator, config: SpansConfig) -> Flags:
    """Which tokens of a row are missing (T,): the spans' lengths, and those of what lies between, drawn uniformly among
    all ways to share the tokens out. A row begins with a token that stays and ends with one that is missing."""
    missing, spans = span_counts(length, config)
    gone = _segments(missing, spans, rng)
    kept = _segments(length - missing, spans, rng)
    lengths = np.stack([kept, gone], axis=1).ravel()
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def hide_spans(ids: Ids, is_missing: Flags, sentinels: Sequence[int]) -> Pair:
    """Source and target of a row (T,), without end tokens."""
    before = np.concatenate([[False], is_missing[:-1]])
    first = is_missing & ~before  # of each missing span
    number = np.cumsum(first) - 1
    assert int(first.sum()) <= len(sentinels), "more spans than sentinels"
    marks = np.asarray(sentinels, np.int64)[np.clip(number, 0, len(sentinels) - 1)]
    source = np.where(first, marks, ids)[~is_missing | first]
    target = np.stack([marks, ids], axis=1)[is_missing]  # (M, 2)
    return Pair(source, target[np.stack([first[is_missing], np.ones(len(target), bool)], axis=1)])


def fill_in(pair: Pair, sentinels: Sequence[int]) -> Ids:
    """The inverse of ``hide_spans``: what the target says goes where the source has its sentinel."""
    marks = set(sentinels)
    spans: dict[int, list[int]] = {}
    mark = -1
    for token in pair.target.tolist():
        if token in marks:
            mark = token
            spans[mark] = []
        else:
            spans[mark].append(token)
    filled = [part for token in pair.source.tolist() for part in spans.get(token, [token])]
    return np.array(filled, np.int64)


def _segments(total: int, parts: int, rng: np.random.Generator) -> Ids:
    """``total`` shared out over ``parts``, each 1 at least: (parts,), every way as likely."""
    cuts = np.sort(rng.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]])).astype(np.int64)
