"""Texts to train tokenizers on, streamed from files, and which of the two languages each is in.

Knows nothing of tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from danlu.core.errors import ConfigError, DataError, nearest
from danlu.core.files import read_jsonl, utf8_lines

Language = Literal["zh", "en"]
LANGUAGES: tuple[Language, ...] = ("zh", "en")
"""zh is text whose letters are at least one third Han; en stands for all the rest."""

_HAN = re.compile("[㐀-䶿一-鿿豈-﫿\U00020000-\U0003ffff]")
_LETTER = re.compile(r"[^\W\d_]")
_SUFFIXES = (".txt", ".jsonl", ".parquet")


def language_of(text: str) -> Language:
    """zh when at least one third of the letters are Han."""
    letters = len(_LETTER.findall(text))
    return "zh" if letters and 3 * len(_HAN.findall(text)) >= letters else "en"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents of .txt, .jsonl and .parquet files, read again each time they are asked for, never all in memory."""

    files: tuple[Path, ...]
    """In the order they are read. A .txt file has one document per paragraph (blank lines between)."""
    column: str = "text"
    """Column or key of the document in .jsonl and .parquet files; messages are joined by line breaks."""
    max_rows: int = 0
    """Most documents of each file; 0 means all."""

    def __post_init__(self) -> None:
        for path in self.files:
            if path.suffix not in _SUFFIXES:
                raise ConfigError(f"{path} is no {', '.join(_SUFFIXES)} file.", "Convert it to one of these.")
            if not path.is_file():
                raise DataError(f"There is no file {path}.", "Mend the path.")

    def __iter__(self) -> Iterator[str]:
        for path in self.files:
            rows = _paragraphs(path) if path.suffix == ".txt" else self._rows(path)
            for number, text in enumerate(rows):
                if self.max_rows and number == self.max_rows:
                    break
                yield text

    def _rows(self, path: Path) -> Iterator[str]:
        if path.suffix == ".jsonl":
            for row in read_jsonl(path):
                if self.column not in row:
                    raise DataError(f"{path} has a row without '{self.column}'.", nearest(self.column, row))
                yield _as_text(row[self.column], path, self.column)
            return
        import pyarrow
        import pyarrow.parquet as parquet

        try:
            file = parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path} is no Parquet file: {error}", "Make it again.") from error
        with file:
            if self.column not in file.schema_arrow.names:
                raise DataError(f"{path} has no column '{self.column}'.", nearest(self.column, file.schema_arrow.names))
            for batch in file.iter_batches(batch_size=1024, columns=[self.column]):
                for value in batch.column(0).to_pylist():
                    yield _as_text(value, path, self.column)


def _paragraphs(path: Path) -> Iterator[str]:
    lines: list[str] = []
    for line in utf8_lines(path):
        if line.strip():
            lines.append(line)
        elif lines:
            yield "".join(lines)
            lines = []
    if lines:
        yield "".join(lines)


def _as_text(value: Any, path: Path, column: str) -> str:
    """A text; the joined contents of messages; nothing of a missing value."""
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in value):
        return "\n".join(message["content"] for message in cast("list[dict[str, str]]", value))
    if not isinstance(value, str):
        raise DataError(f"{path} has {value!r:.60} in '{column}'.", "Name a column of texts.")
    return value
