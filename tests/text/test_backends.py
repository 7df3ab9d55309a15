"""For every kind of tokenizer: typed names of special tokens stay text; spaces in front; bytes one by one."""

from __future__ import annotations

import functools
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.text.sentencepiece import build_sentencepiece, parse_sentencepiece
from danlu.text.tokenizer import TextStream, TextTokenizer
from tests.text.tokenizers import KINDS, SPM_BPE, roberta, sentencepiece_bpe, spm_bytes, unigram

EVERY_NAME = sorted({name for _, names in KINDS.values() for name in names})
texts = st.lists(
    st.one_of(st.sampled_from(EVERY_NAME), st.sampled_from([" ", "  ", "\n", "<", "s>", "[", "navy", "面料", "👗"])),
    max_size=8,
).map("".join)


@functools.cache
def make(kind: str) -> TextTokenizer:
    tokenizer = KINDS[kind][0]()
    assert set(KINDS[kind][1]) <= tokenizer.special_ids.keys()
    return tokenizer


@pytest.mark.parametrize("kind", KINDS)
@given(texts)
def test_no_text_becomes_a_special_token(kind: str, text: str) -> None:
    tokenizer = make(kind)
    special = set(tokenizer.special_ids.values()) - {tokenizer.unk_id}
    assert not special & set(tokenizer.encode(text))
    assert not special & set(tokenizer.encode_rest(text))
    assert not special & set(tokenizer.encode_with_offsets(text)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", [False, True])
def test_the_frame_is_all_there_is_of_special_tokens(kind: str, pair: bool) -> None:
    tokenizer = make(kind)
    hostile = " ".join(EVERY_NAME)
    special = set(tokenizer.special_ids.values()) - {tokenizer.unk_id}

    def frame(text: str) -> list[int]:
        return [i for i in tokenizer.encode_with_specials(text, text if pair else None)[0] if i in special]

    assert frame(hostile) == frame("navy")


def test_the_library_alone_would_take_a_typed_end_for_the_real_one() -> None:
    """The reason for all this: without it the test above fails."""
    tokenizer = unigram()
    assert 1 in tokenizer.backend.encode("navy </s>", add_special_tokens=False).ids
    assert 1 not in tokenizer.encode("navy </s>")


@pytest.mark.parametrize("kind", KINDS)
@given(texts)
def test_ids_of_text_without_names_are_the_librarys(kind: str, text: str) -> None:
    tokenizer = make(kind)
    for name in EVERY_NAME:
        text = text.replace(name, "")
    if any(name in text for name in EVERY_NAME):
        return
    assert tokenizer.encode(text) == tokenizer.backend.encode(text, add_special_tokens=False).ids


def test_the_rest_of_a_text_has_no_space_of_its_own_in_front() -> None:
    tokenizer = sentencepiece_bpe()
    assert tokenizer.prefix == "always"
    navy = tokenizer.backend.token_to_id("▁navy")
    assert tokenizer.encode("navy") == [navy]
    assert tokenizer.encode_rest(" navy") == [navy]
    assert navy not in tokenizer.encode_rest("navy")
    assert roberta().prefix == "never"
    assert unigram().prefix == "always"
    assert unigram().encode_rest("navy") != unigram().encode("navy")


@given(st.lists(st.integers(0, 290), max_size=40))
def test_streamed_pieces_of_byte_fallback_ids_join_to_their_text(ids: list[int]) -> None:
    tokenizer = make("sentencepiece_bpe")
    stream = TextStream(tokenizer)
    assert "".join([*(stream.push(i) for i in ids), stream.finish()]) == tokenizer.decode(ids)


@given(st.lists(st.one_of(st.integers(0, 299)), max_size=30), st.sampled_from(["unigram", "wordpiece"]))
def test_streamed_pieces_of_any_kind_join_to_their_text(ids: list[int], kind: str) -> None:
    tokenizer = make(kind)
    stream = TextStream(tokenizer)
    assert "".join([*(stream.push(i) for i in ids), stream.finish()]) == tokenizer.decode(ids)


def test_a_piece_that_only_looks_like_a_byte_is_text() -> None:
    backend = build_sentencepiece(parse_sentencepiece(spm_bytes([*SPM_BPE, ("<0xZZ>", -9.0, 1)], {3: 2, 35: 1})))
    assert TextTokenizer(backend, end_tokens=[]).decode([len(SPM_BPE)]) == "<0xZZ>"


def test_a_character_made_of_bytes_is_streamed_once_it_is_whole() -> None:
    tokenizer = make("sentencepiece_bpe")
    ids = tokenizer.encode("navy 👗👗")
    stream = TextStream(tokenizer)
    pieces = [stream.push(i) for i in ids]
    assert pieces == ["navy", " ", *(["", "", "", "👗"] * 2)]
    assert tokenizer.decode(ids[:-1]) == "navy 👗\ufffd"


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_tell_which_characters_a_token_stands_for(kind: str) -> None:
    tokenizer = make(kind)
    text = "soft navy dress"
    ids, spans = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    covered = {i for start, end in spans for i in range(start, end)}
    assert {i for i, letter in enumerate(text) if letter != " "} <= covered
    assert all(one[1] <= other[1] for one, other in itertools.pairwise(spans))


def test_offsets_of_a_framed_text_leave_the_frame_out() -> None:
    tokenizer = make("wordpiece")
    ids, spans = tokenizer.encode_with_offsets("soft dress", with_specials=True, max_tokens=4)
    assert len(ids) == 4
    assert (ids[0], ids[-1], spans[0], spans[-1]) == (2, 3, (0, 0), (0, 0))
    assert "soft dress"[slice(*spans[1])].startswith("s")
