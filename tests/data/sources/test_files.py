"""Reading rows, and what is said about files that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from danlu.core.errors import DataError
from danlu.data.sources.files import read_rows, require_columns


def _write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_parquet_with_brotli_is_known_by_its_bytes(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", None], "n": [1, 2]})
    pq.write_table(table, tmp_path / "x.parquet.brotli", compression="brotli")
    assert read_rows(tmp_path / "x.parquet.brotli").table.equals(table)


def test_jsonl_keeps_types_and_fills_what_a_row_lacks(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.jsonl", '\ufeff{"a": "纯棉", "n": 1}\n\n{"a": "b", "more": [1]}\n')
    assert read_rows(path).table.to_pylist() == [
        {"a": "纯棉", "n": 1, "more": None},
        {"a": "b", "n": None, "more": [1]},
    ]


def test_a_column_of_mixed_types_becomes_text(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.jsonl", '{"a": "b"}\n{"a": 3}\n{"a": {"c": 1}}\n')
    assert read_rows(path).table["a"].to_pylist() == ["b", "3", '{"c": 1}']


def test_csv_may_hold_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.csv", 'id,text\n007,"soft, ""warm""\nand long"\n\n8,ok\n')
    assert read_rows(path).table.to_pylist() == [
        {"id": "007", "text": 'soft, "warm"\nand long'},
        {"id": "8", "text": "ok"},
    ]


def test_tsv_is_split_at_tabs(tmp_path: Path) -> None:
    assert read_rows(_write(tmp_path / "x.tsv", "a\tb\n1,5\t2\n")).table.to_pylist() == [{"a": "1,5", "b": "2"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "", r"x\.csv is empty \(0 bytes\).*Give a file with rows"),
        ("x.csv", "a,b\n", r"x\.csv has no rows"),
        ("x.jsonl", "\n\n", r"x\.jsonl has no rows"),
        ("x.txt", "hello", r"x\.txt is neither Parquet nor named .*Rename or convert"),
        ("x.csv", "a,b\n1,2\n3\n", r"x\.csv, line 3: 1 fields instead of 2\. .*on_broken: drop"),
        ("x.csv", 'a,b\n1,"2\n', r"x\.csv, line 2: not CSV"),
        ("x.csv", "a,a\n1,2\n", r"the column 'a' stands twice\. Rename"),
        ("x.jsonl", '{"a": 1}\n{"a": \n', r"x\.jsonl, line 2: not JSON: '\{\"a\":'"),
        ("x.jsonl", "[1]\n", r"x\.jsonl, line 1: not an object: '\[1\]'"),
        ("x.jsonl", '{"a": "\\ud83d"}\n', r"line 1: holds half a character"),
        ("x.csv", "text\n很好\n".encode("gb18030"), r"line 2 is not UTF-8 \(byte 0x.*iconv -f gb18030"),
        ("x.parquet", b"PAR1nothing more", r"x\.parquet is not a whole Parquet file.*Fetch or make it again"),
    ],
)
def test_what_cannot_be_read_is_named_with_place_and_remedy(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_rows(_write(tmp_path / name, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv is not a file"):
        read_rows(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("name", "content", "broken"),
    [
        ("x.csv", "a,b\n1,2\n3\n4,5\n", [(3, "1 fields instead of 2")]),
        ("x.jsonl", '{"a": "1"}\nnope\n{"a": "4"}\n', [(2, "not JSON: 'nope' (Expecting value)")]),
    ],
)
def test_broken_rows_may_be_left_out_and_are_reported(
    tmp_path: Path, name: str, content: str, broken: list[tuple[int, str]]
) -> None:
    rows = read_rows(_write(tmp_path / name, content), on_broken="drop")
    assert rows.table["a"].to_pylist() == ["1", "4"]
    assert rows.broken == broken


def test_another_encoding_is_an_error_even_where_broken_rows_are_dropped(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.csv", "text\n很好\n".encode("gb18030"))
    with pytest.raises(DataError, match="is not UTF-8"):
        read_rows(path, on_broken="drop")


def test_a_missing_column_is_named_with_the_nearest_one() -> None:
    with pytest.raises(DataError, match=r"no column 'Review Text'\. Did you mean 'review_text'\? Set it under"):
        require_columns(pa.table({"review_text": ["a"], "n": [1]}), ["n", "Review Text"])
