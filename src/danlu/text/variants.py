"""Characters written one way to the same written another, such as traditional to simplified Chinese, by word lists.

Lists are lines of ``from TAB to``, further ways behind a space, # for comments. Phrases go before single characters,
the longest first at each place, because one character may have two simple forms. Knows no list by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from danlu.core.errors import DataError
from danlu.core.files import utf8_lines


class Variants:
    """Rewrites text by lists read from files; earlier files win."""

    def __init__(self, files: Sequence[Path]) -> None:
        pairs = {old: new for path in reversed(files) for old, new in _pairs(path)}
        self._characters = {ord(old): new for old, new in pairs.items() if len(old) == 1}
        self._phrases = {old: new for old, new in pairs.items() if len(old) > 1}
        self._pattern = _any_of(self._phrases)

    def rewrite(self, text: str) -> str:
        """The text with every phrase and character of the lists replaced."""
        if self._pattern is None:
            return text.translate(self._characters)
        parts: list[str] = []
        end = 0
        for found in self._pattern.finditer(text):
            parts += (text[end : found.start()].translate(self._characters), self._phrases[found.group()])
            end = found.end()
        parts.append(text[end:].translate(self._characters))
        return "".join(parts)


def _any_of(phrases: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(phrases, key=lambda phrase: (-len(phrase), phrase))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _pairs(path: Path) -> Iterable[tuple[str, str]]:
    for number, line in enumerate(utf8_lines(path), start=1):
        line = line.rstrip("\r\n")
        if not line.strip() or line.startswith("#"):
            continue
        old, tab, new = line.partition("\t")
        if not tab or not old or not new.split():
            raise DataError(f"{path}, line {number} is {line!r:.60}.", "A line is: from, a tab, to.")
        yield old, new.split()[0]
