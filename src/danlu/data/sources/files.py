"""Rows from files: Parquet (any of its compressions), JSON lines, CSV and TSV, as one Arrow table.

The form is told by the first bytes (Parquet) or the name. What is broken is named by line. Text must be UTF-8: rows in
another encoding are never guessed at nor dropped, because a whole file would vanish that way. Does not know what the
columns mean.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from danlu.core.errors import DataError, nearest
from danlu.core.files import utf8_lines

OnBroken = Literal["error", "drop"]
"""What to do with a row that cannot be read: stop, or leave it out and count it."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one file, and the lines that could not be read: (line number, what was wrong)."""

    table: pa.Table
    broken: list[tuple[int, str]] = field(default_factory=list)


def read_rows(path: Path, on_broken: OnBroken = "error") -> Rows:
    """Read a file of rows; DataError when it is missing, empty, damaged or not UTF-8."""
    if not path.is_file():
        raise DataError(f"{path} is not a file.", "Check the path, or run the stage that makes it.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes).", "Give a file with rows, or make it again.")
    with open(path, "rb") as handle:
        is_parquet = handle.read(4) == b"PAR1"
    if is_parquet:
        rows = Rows(table=_read_parquet(path))
    elif path.suffix.lower() in (".jsonl", ".ndjson"):
        rows = _collect(path, _jsonl(path), on_broken)
    elif path.suffix.lower() in (".csv", ".tsv"):
        rows = _collect(path, _csv(path, "\t" if path.suffix.lower() == ".tsv" else ","), on_broken)
    else:
        raise DataError(
            f"{path.name} is neither Parquet nor named .jsonl, .ndjson, .csv or .tsv.", "Rename or convert it."
        )
    if rows.table.num_rows == 0:
        raise DataError(f"{path} has no rows.", "Give a file with at least one row.")
    return rows


def require_columns(table: pa.Table, names: Sequence[str]) -> None:
    """DataError naming the first column that is missing, and the nearest one present."""
    for name in names:
        if name not in table.column_names:
            raise DataError(
                f"There is no column '{name}'.", f"{nearest(name, table.column_names)} Set it under 'columns'."
            )


def _read_parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path} is not a whole Parquet file: {str(error).splitlines()[0]}", "Fetch or make it again."
        ) from error


_Read = Iterator[tuple[int, dict[str, Any] | str]]
"""Line number with the row, or with what is wrong with it."""


def _jsonl(path: Path) -> _Read:
    for number, line in enumerate(utf8_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            yield number, f"not JSON: {line.strip()[:60]!r} ({error.msg})"
        except UnicodeEncodeError:
            yield number, "holds half a character (an escape cut in two)"
        else:
            yield number, row if isinstance(row, dict) else f"not an object: {line.strip()[:60]!r}"


def _csv(path: Path, delimiter: str) -> _Read:
    reader = csv.reader(utf8_lines(path), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num, f"not {'TSV' if delimiter == chr(9) else 'CSV'}: {error}"
            continue
        if header is None:
            header = _header(path, cells)
        elif cells and len(cells) != len(header):
            yield reader.line_num, f"{len(cells)} fields instead of {len(header)}"
        elif cells:
            yield reader.line_num, dict(zip(header, cells, strict=True))


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{path}: the column '{repeated[0]}' stands twice.", "Rename one of them.")
    return names


def _collect(path: Path, read: _Read, on_broken: OnBroken) -> Rows:
    rows: list[dict[str, Any]] = []
    broken: list[tuple[int, str]] = []
    for number, row in read:
        if isinstance(row, dict):
            rows.append(row)
        elif on_broken == "drop":
            broken.append((number, row))
        else:
            raise DataError(
                f"{path}, line {number}: {row}.",
                "Mend or remove the line, or set on_broken: drop to leave such rows out.",
            )
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [_column([row.get(name) for row in rows]) for name in names]
    return Rows(table=pa.table(columns, names=names), broken=broken)


def _column(values: list[Any]) -> pa.Array:
    """Values as one Arrow array; a mixture of types becomes text."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        plain = [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
        return pa.array(plain, pa.string())
