"""The noise of BART (Lewis et al. 2020, section 2.2): spans become one mask token each, sentences change places.

The model writes the whole row again. A span may be empty: its mask token stands for nothing, so the model has to learn
how many tokens are missing. Knows ids and a table of which end sentences, no text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from danlu.core.errors import ConfigError
from danlu.train.objectives.masked import Flags, Ids


@dataclass(frozen=True, kw_only=True)
class DenoiseConfig:
    """Learn to restore damaged text."""

    share: float = 0.3
    """Share of tokens that are missing."""
    mean_length: float = 3.0
    """Mean of the Poisson distribution of a span's length."""
    shuffles_sentences: bool = True
    """Whether sentences change places."""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ConfigError(f"share is {self.share}.", "Use 0 to below 1, such as 0.3.")
        if self.mean_length <= 0:
            raise ConfigError(f"mean_length is {self.mean_length}.", "Use a positive number such as 3.0.")


def span_lengths(missing: int, mean: float, rng: np.random.Generator) -> Ids:
    """Lengths drawn until they sum to ``missing``; the last one is cut to fit."""
    lengths: list[int] = []
    while missing > 0:
        length = min(missing, int(rng.poisson(mean)))
        lengths.append(length)
        missing -= length
    return np.array(lengths, np.int64)


def infill(ids: Ids, rng: np.random.Generator, config: DenoiseConfig, *, mask_id: int) -> Ids:
    """A row (T,) with spans replaced by one mask token each. Spans may touch; each lies as likely anywhere."""
    lengths = span_lengths(round(ids.size * config.share), config.mean_length, rng)
    kept = ids.size - int(lengths.sum())
    before = np.sort(rng.integers(0, kept + 1, size=lengths.size))  # tokens that stay before each span
    starts = before + np.cumsum(lengths) - lengths
    pieces: list[Ids] = []
    place = 0
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        pieces += [ids[place:start], np.array([mask_id], np.int64)]
        place = start + length
    return np.concatenate([*pieces, ids[place:]])


def shuffle_sentences(ids: Ids, rng: np.random.Generator, ends_sentence: Flags) -> Ids:
    """A row with its sentences in random order; ``ends_sentence`` (V,) are tokens after which one is over."""
    cuts = np.flatnonzero(ends_sentence[ids[:-1]]) + 1 if ids.size else []
    sentences = np.split(ids, cuts)
    return np.concatenate([sentences[number] for number in rng.permutation(len(sentences))])


def damage(
    ids: Ids, rng: np.random.Generator, config: DenoiseConfig, *, mask_id: int, ends_sentence: Flags | None = None
) -> Ids:
    """What the model reads of a row (T,): sentences shuffled, then spans hidden."""
    if config.shuffles_sentences:
        assert ends_sentence is not None, "shuffling needs to know where sentences end"
        ids = shuffle_sentences(ids, rng, ends_sentence)
    return infill(ids, rng, config, mask_id=mask_id)
