"""Hidden tokens of BERT (Devlin et al. 2019, section 3.1 and appendix C.2): some tokens are to be told from the others.

Of those chosen most become the mask token, some a random token, some stay: later text has no mask tokens either. Knows
ids and tables over the vocabulary, no text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from danlu.core.errors import ConfigError

Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class MaskedConfig:
    """Learn to tell hidden tokens."""

    share: float = 0.15
    """Share of a row's tokens to tell, at least one."""
    masked: float = 0.8
    """Share of those that become the mask token."""
    random: float = 0.1
    """Share of those that become a random token; the rest stay as they are."""
    whole_words: bool = False
    """Whether all tokens of a word are chosen together (Cui et al. 2021). A Han character is a word."""

    def __post_init__(self) -> None:
        check_share("share", self.share)
        if min(self.masked, self.random) < 0 or self.masked + self.random > 1:
            raise ConfigError(
                f"masked is {self.masked}, random {self.random}.", "Use shares of 0 to 1 that sum to 1 at most."
            )


@dataclass(frozen=True)
class Masked:
    """A row with hidden tokens."""

    ids: Ids
    """(T,) what the model sees."""
    places: Ids
    """(M,) ascending: where it is asked."""
    targets: Ids
    """(M,) what was there."""


def check_share(name: str, value: float) -> None:
    """ConfigError when a share is not between 0 and 1."""
    if not 0 < value < 1:
        raise ConfigError(f"{name} is {value}.", "Use a share between 0 and 1, such as 0.15.")


def mask_tokens(
    ids: Ids,
    rng: np.random.Generator,
    config: MaskedConfig,
    *,
    mask_id: int,
    is_special: Flags,
    begins_word: Flags | None = None,
) -> Masked:
    """Choose tokens of one row (T,) and hide them.

    ``is_special`` (V,) are never chosen and never put in at random; ``begins_word`` (V,) are the first tokens of words.
    The number chosen is the share of all tokens that may be, rounded; whole words never make it more, but for a row of
    one long word.
    """
    free = np.flatnonzero(~is_special[ids])
    if not free.size:
        return Masked(ids.copy(), free, free)
    wanted = max(1, round(free.size * config.share))
    if config.whole_words:
        assert begins_word is not None, "whole words need to know where words begin"
        places = np.sort(_whole_words(ids, free, wanted, rng, begins_word))
    else:
        places = np.sort(rng.permutation(free)[:wanted])
    fate = rng.random(places.size)
    ordinary = np.flatnonzero(~is_special)
    chance = ordinary[rng.integers(ordinary.size, size=places.size)]
    hidden = np.where(fate < config.masked + config.random, chance, ids[places])
    hidden[fate < config.masked] = mask_id
    seen = ids.copy()
    seen[places] = hidden
    return Masked(seen, places, ids[places])


def _whole_words(
    ids: Ids, free: Ids, wanted: int, rng: np.random.Generator, begins_word: Flags
) -> npt.NDArray[Any]:  # fmt: skip
    """Words in random order, each taken that still fits; when none fits, the first of them."""
    starts = begins_word[ids[free]]
    starts[1:] |= np.diff(free) > 1  # a special token ends a word
    starts[0] = True
    words = np.split(free, np.flatnonzero(starts)[1:])
    taken: list[Ids] = []
    room = wanted
    for number in rng.permutation(len(words)):
        if words[number].size <= room:
            taken.append(words[number])
            room -= words[number].size
    return np.concatenate(taken or [words[int(rng.integers(len(words)))]])
