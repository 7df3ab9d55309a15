import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.text.json_scan import BrokenJson, JsonScanner

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def scan(text: str) -> tuple[str, bool]:
    """What stands for the text in correct JSON, and whether it is whole."""
    scanner, written = JsonScanner(), ""
    for character in text:
        scanner.push(character)
        written += scanner.written
    return written, scanner.is_complete


@given(value=values, indent=st.sampled_from([None, 1]), is_ascii=st.booleans())
def test_every_object_is_followed_to_its_end(value: Any, indent: int | None, is_ascii: bool) -> None:
    text = json.dumps({"a": value}, indent=indent, ensure_ascii=is_ascii)
    assert scan(text) == (text, True)
    assert all(not scan(text[:cut])[1] for cut in range(1, len(text)))


@given(text=st.text(alphabet='{}[]":,\\ 01-.eEtruefalsn\nu', max_size=12))
def test_what_it_takes_for_whole_is_json_and_what_it_refuses_is_not(text: str) -> None:
    try:
        written, is_complete = scan(text + " ")
    except BrokenJson:
        with pytest.raises(ValueError):
            json.loads(text, strict=False)
        return
    if is_complete:
        json.loads(written)


def test_a_bare_line_break_within_a_text_is_written_as_its_escape() -> None:
    assert scan('{"a": "one\ntwo"}') == ('{"a": "one\\ntwo"}', True)


def test_events_tell_what_each_character_does() -> None:
    scanner = JsonScanner()
    seen = [(character, event) for character in '{"a": 1, "b": [2]}' for event in scanner.push(character)]
    assert seen == [
        ("{", ("start", 0)), ('"', ("key", 1)), ("1", ("start", 1)), (",", ("ended", 1)), ('"', ("key", 1)),
        ("[", ("start", 1)), ("2", ("start", 2)), ("]", ("ended", 2)), ("]", ("end", 1)), ("}", ("end", 0)),
    ]  # fmt: skip


def test_nesting_without_end_is_broken() -> None:
    with pytest.raises(BrokenJson):
        scan("[" * 1000)
