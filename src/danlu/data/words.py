"""Words of mixed English and Chinese text: a Latin word is one unit, and so is each Han character.

One definition for length limits, repetition, shingles and language. Does not know grammar or segmentation.
"""

from __future__ import annotations

import re

_UNIT = re.compile(r"[㐀-鿿豈-﫿]|[^\W_㐀-鿿豈-﫿]+(?:['’-][^\W_㐀-鿿豈-﫿]+)*")
_HAN = re.compile(r"[㐀-鿿豈-﫿]")


def units(text: str) -> list[str]:
    """Words and Han characters in order, punctuation left out."""
    return _UNIT.findall(text)


def num_units(text: str) -> int:
    """How many words (Latin) and characters (Han) a text has."""
    return len(_UNIT.findall(text))


def is_chinese(text: str) -> bool:
    """Whether at least three in ten units are Han characters."""
    han = len(_HAN.findall(text))
    return han > 0 and han >= 0.3 * num_units(text)
