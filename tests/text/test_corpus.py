from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from danlu.core.errors import ConfigError, DataError
from danlu.core.files import write_jsonl
from danlu.text.corpus import Corpus, language_of


def corpus(tmp_path: Path, name: str, content: bytes, **settings: object) -> Corpus:
    (tmp_path / name).write_bytes(content)
    return Corpus(files=(tmp_path / name,), **settings)  # type: ignore[arg-type]


def test_a_text_file_has_a_document_a_paragraph(tmp_path: Path) -> None:
    found = corpus(tmp_path, "a.txt", "one\ntwo\n\n \n三\n".encode())
    assert list(found) == ["one\ntwo\n", "三\n"]
    assert list(found) == list(found)


def test_rows_of_jsonl_and_parquet_are_documents_and_so_are_conversations(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "面料"}]
    write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": None}, {"text": messages}])
    pq.write_table(pa.table({"text": ["three", None, "four"], "x": [1, 2, 3]}), tmp_path / "b.parquet")
    files = (tmp_path / "a.jsonl", tmp_path / "b.parquet")
    assert list(Corpus(files=files)) == ["one", "", "hi\n面料", "three", "", "four"]
    assert list(Corpus(files=files, max_rows=1)) == ["one", "three"]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("面料柔软", "zh"),
        ("iPhone 手机很好用", "zh"),
        ("The word 面料 means fabric", "en"),
        ("12345 !?", "en"),
        ("", "en"),
        ("𠮷野家", "zh"),
    ],
)
def test_a_third_of_han_letters_makes_a_text_chinese(text: str, language: str) -> None:
    assert language_of(text) == language


@pytest.mark.parametrize(
    ("name", "content", "settings", "text"),
    [
        ("a.jsonl", b'{"txt": "x"}\n', {}, r"has a row without 'text'\. Did you mean 'txt'"),
        ("a.jsonl", b'{"text": 3}\n', {}, r"has 3 in 'text'\. Name a column of texts"),
        ("a.parquet", b"PAR1", {}, r"a\.parquet is no Parquet file: "),
    ],
)
def test_a_file_that_cannot_be_used_says_why(
    name: str, content: bytes, settings: dict[str, object], text: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=text):
        list(corpus(tmp_path, name, content, **settings))


def test_a_missing_column_names_the_closest(tmp_path: Path) -> None:
    pq.write_table(pa.table({"texts": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"has no column 'text'\. Did you mean 'texts'"):
        list(Corpus(files=(tmp_path / "b.parquet",)))


def test_only_known_files_that_exist_are_taken(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.csv is no \.txt, \.jsonl, \.parquet file\. Convert it"):
        Corpus(files=(tmp_path / "a.csv",))
    with pytest.raises(DataError, match=r"There is no file .*a\.txt\. Mend the path"):
        Corpus(files=(tmp_path / "a.txt",))
