import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.text.python_literal import python_as_json

LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(value=LITERALS)
def test_what_python_writes_means_the_same_in_json(value: object) -> None:
    found = python_as_json(repr(value))
    assert found is not None
    assert json.loads(found) == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2,]", "[1, 2]"),
        ("(True, null, 'a')", '[true, null, "a"]'),
        ("+1_000", "1000"),
        ("007", "7"),
        (".5", "0.5"),
        (r"r'\d'", r'"\\d"'),
        (r"'\d\x41\u5317\U0001F642\101'", r'"\\dA北🙂A"'),
        ("'a\nb'", r'"a\nb"'),
        (r"'\ud83d\ude42'", '"🙂"'),
    ],
)
def test_what_models_write_is_read_as_it_is_meant(text: str, expected: str) -> None:
    assert python_as_json(text) == expected


@pytest.mark.parametrize(
    "text", ["", "a", "f()", "1 + 1", "1e999.", "{1: 2}", "[1", "b'x'", "'a", "9" * 5000 + "_0", "[" * 100_000]
)
def test_what_is_no_literal_for_json_is_none(text: str) -> None:
    assert python_as_json(text) is None


@given(text=st.text(alphabet="[]{}(),:'\"\\\\ntrueTrue0189-+._e x", max_size=40))
def test_any_text_is_json_or_nothing(text: str) -> None:
    found = python_as_json(text)
    if found is not None:
        json.loads(found)
