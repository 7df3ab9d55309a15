from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.data.ops.normalize import normalize


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a\u00a0 b\t\tc \r\n\r\n\r\n\r\nd", "a b c\n\nd"),
        ("it\u2019s \u201cnice\u201d \u2013 really", 'it\'s "nice" - really'),
        ("itâ€™s fine", "it's fine"),
        ("size&nbsp;M &amp; L<br/>new", "size M & L\nnew"),
        ("e\u0301le\u0301gant", "élégant"),
        ("ＡＢＣ１２３，尺码Ｍ的裙子很好看！", "ABC123，尺码M的裙子很好看！"),
        ("ｎｉｃｅ　ｄｒｅｓｓ！", "nice dress!"),
        ("zero\u200bwidth\x00\x07", "zerowidth"),
        ("keep!!! (all) the - punctuation; 5'4\" <3", "keep!!! (all) the - punctuation; 5'4\" <3"),
        ("  ", ""),
    ],
)
def test_text_is_written_one_way(raw: str, expected: str) -> None:
    assert normalize(raw) == expected


@given(st.text(alphabet=st.sampled_from("aé\u0301Ａ１，。中文'\u2019\u201c \t\n\x00-!.;"), max_size=60))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once
