"""quality: drops texts that cannot teach anything: empty, too short, too long, not words, repetitive, shouting.

Lengths count a Latin word or a Han character as one. The ideas are those of the Gopher rules (Rae et al. 2021,
appendix A1), with thresholds for short product texts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa

from danlu.core.errors import ConfigError
from danlu.data.pipeline import Applied, Operator, texts
from danlu.data.words import units


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """Thresholds; each row dropped says which one it missed and by how much."""

    min_words: int = 4
    """Fewest words (Latin) or characters (Han)."""
    max_words: int = 2000
    """Most words (Latin) or characters (Han)."""
    min_alphabetic: float = 0.6
    """Least share of letters among the characters that are not white space."""
    min_distinct: float = 0.25
    """Least share of distinct words in texts of 20 or more."""
    max_uppercase: float = 0.7
    """Largest share of capitals in texts of 20 or more Latin letters."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_words <= self.max_words:
            raise ConfigError(
                f"min_words is {self.min_words}, max_words {self.max_words}.", "Use 0 <= min_words <= max_words."
            )


def judge(text: str, config: QualityConfig) -> tuple[str, str] | None:
    """Reason and measured value when ``text`` should go, else None."""
    if not text.strip():
        return "empty", ""
    words = units(text)
    if len(words) < config.min_words:
        return "too_short", f"{len(words)} words"
    if len(words) > config.max_words:
        return "too_long", f"{len(words)} words"
    dense = "".join(text.split())
    alphabetic = len(_NOT_LETTERS.sub("", dense)) / len(dense)
    if alphabetic < config.min_alphabetic:
        return "not_words", f"{alphabetic:.2f} letters"
    distinct = len({word.casefold() for word in words}) / len(words)
    if (len(words) >= 20 and distinct < config.min_distinct) or _RUN.search(dense):
        return "repetitive", f"{distinct:.2f} distinct"
    num_capitals, num_small = len(_NOT_CAPITALS.sub("", dense)), len(_NOT_SMALL.sub("", dense))
    uppercase = num_capitals / max(1, num_capitals + num_small)
    if num_capitals + num_small >= 20 and uppercase > config.max_uppercase:
        return "shouting", f"{uppercase:.2f} capitals"
    return None


def apply(table: pa.Table, config: QualityConfig) -> Applied:
    """Judge the column ``text``; null counts as empty."""
    verdicts = [judge(text, config) for text in texts(table, "text")]
    reasons = [verdict and verdict[0] for verdict in verdicts]
    return Applied(table=table, reasons=reasons, details=[verdict and verdict[1] for verdict in verdicts])


_NOT_LETTERS = re.compile(r"[\W\d_]+")
_NOT_CAPITALS = re.compile(r"[^A-Z]+")
_NOT_SMALL = re.compile(r"[^a-z]+")
_RUN = re.compile(r"(\w)\1{9}|(\w{2,4})\2{7}")

plugin = Operator(name="quality", version=1, scope="rows", config_type=QualityConfig, apply=apply)
