from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import DataError
from danlu.data.sources.texts import Form, join_words, read_texts


def texts(folder: Path, form: Form, **files: Any) -> list[str]:
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))
    return [text for _, text in read_texts(folder, form)]


def test_text_files_and_lists_of_texts_are_documents(tmp_path: Path) -> None:
    assert texts(tmp_path, "texts", a__txt="one\n\ntwo\n", b__json=["three", "four"]) == [
        "one\n\ntwo\n",
        "three",
        "four",
    ]


def test_a_poem_is_title_author_and_lines(tmp_path: Path) -> None:
    poems = [
        {"title": "静夜思", "author": "李白", "paragraphs": ["床前看月光，疑是地上霜。", "举头望山月，低头思故乡。"]},
        {"rhythmic": "导引", "author": "和岘", "paragraphs": ["气和玉烛。", ""]},
        {"title": "关雎", "content": ["关关雎鸠。"]},
        {"title": "空", "author": "无名", "paragraphs": []},
    ]
    assert texts(tmp_path, "poems", a__json=poems) == [
        "静夜思\n李白\n\n床前看月光，疑是地上霜。\n举头望山月，低头思故乡。",
        "导引\n和岘\n\n气和玉烛。",
        "关雎\n\n关关雎鸠。",
        "",
    ]


def test_tagged_words_become_sentences_again(tmp_path: Path) -> None:
    tagged = (
        "\n\n\tThe/at Jury/nn-tl said/vbd ``/`` no/at evidence/nn ''/'' of/in 1/2/cd (/( or/cc more/ap )/) ,/, "
        "didn't/dod* it/pps ?/. ?/.\nYes/rb ;/. ;/. so/rb ./.\n\n\tNew/jj paragraph/nn ./.\n"
    )
    assert texts(tmp_path, "tagged_words", ca01=tagged) == [
        'The Jury said "no evidence" of 1/2 (or more), didn\'t it? Yes; so.\nNew paragraph.'
    ]


def test_quotation_marks_close_and_open() -> None:
    assert join_words(["``", "A", "''", ",", "``", "b", "''"]) == '"A", "b"'


def test_a_description_is_its_synopsis_and_unwrapped_paragraphs_each_once(tmp_path: Path) -> None:
    index = (
        "Package: toy\nDescription-md5: 1\nDescription-en: a small thing\n A thing that\n is small.\n .\n It has:\n"
        "  * wheels\n  * a horn\n\n"
        "Package: toy-dev\nDescription-md5: 1\nDescription-en: a small thing\n A thing that\n is small.\n\n"
        "Package: b\nDescription-md5: 2\nDescription-en: other\n"
    )
    assert texts(tmp_path, "descriptions", Translation=index) == [
        "toy: a small thing\nA thing that is small.\nIt has:\n* wheels\n* a horn",
        "b: other",
    ]


@pytest.mark.parametrize(
    ("form", "content", "message"),
    [
        ("texts", [1], r"a\.json has 1 among its texts\. Give a JSON list of texts"),
        ("texts", {"a": 1}, r"a\.json holds no JSON list\. Fetch only files of this form"),
        ("poems", ["x"], r"a\.json has 'x' among its poems\. Give a JSON list of objects"),
        ("poems", [{"title": "x"}], r"has a poem without lines: .*\. Use one of paragraphs, content"),
        ("poems", [{"paragraphs": [1]}], r"has a poem without lines"),
        ("tagged_words", "plain words", r"has 'plain', a word without a tag\. Give files of word/tag"),
        ("descriptions", "Package: a\nVersion: 1\n", r"has a paragraph without a description\. Give a Translation"),
        ("descriptions", "no colon\n", r"has the line 'no colon', which is no 'Key: value'\. Is it an index"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path: Path, form: Form, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        texts(tmp_path, form, a__json=content)


def test_a_folder_without_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no files\. Check the stage that made it"):
        texts(tmp_path, "texts")
