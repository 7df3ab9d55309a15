from pathlib import Path

import pytest

from danlu.core.errors import DataError
from danlu.text.variants import Variants


def variants(folder: Path, **files: str) -> Variants:
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return Variants([folder / name for name in files])


def test_characters_and_phrases_are_rewritten_the_longest_first(tmp_path: Path) -> None:
    lists = variants(
        tmp_path, characters="# a list\n\n乾\t干 乾\n隆\t隆\n帝\t帝\n臺\t台\n", phrases="乾隆\t乾隆\n乾隆帝\t乾隆帝\n"
    )
    assert lists.rewrite("乾隆帝的乾糧在臺上，乾隆。") == "乾隆帝的干糧在台上，乾隆。"


def test_what_a_phrase_became_is_not_rewritten_again(tmp_path: Path) -> None:
    assert variants(tmp_path, a="ab\tcc\nc\td\n").rewrite("abc") == "ccd"


def test_the_first_file_wins(tmp_path: Path) -> None:
    assert variants(tmp_path, first="a\tx\n", second="a\ty\nb\tz\n").rewrite("ab") == "xz"


def test_without_phrases_characters_are_enough(tmp_path: Path) -> None:
    assert variants(tmp_path, a="國\t国\n").rewrite("中國") == "中国"
    assert Variants([]).rewrite("中國") == "中國"


@pytest.mark.parametrize("line", ["國国", "國\t", "\t国"])
def test_a_line_of_another_form_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match=r"a, line 2 is .*\. A line is: from, a tab, to\."):
        variants(tmp_path, a=f"# head\n{line}\n")
