"""What tokens stand for, one by one."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models

from danlu.core.records import TokenLogprob
from danlu.serve.engine.spelling import Spelling
from danlu.text.tokenizer import TextTokenizer
from tests.tiny import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(make_tokenizer(), end_tokens=["<|im_end|>"])


@pytest.mark.parametrize("text", ["the navy dress", "丹炉 🙂", " a  b\n"])
def test_the_bytes_of_all_tokens_join_to_the_text(tokenizer: TextTokenizer, text: str) -> None:
    spelling = Spelling(tokenizer)
    ids = tokenizer.encode(text)
    assert b"".join(spelling.bytes_of(token) for token in ids) == text.encode()


def test_a_token_may_hold_part_of_a_character(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("丹")
    pieces = [Spelling(tokenizer).bytes_of(token) for token in ids]
    assert len(pieces) > 1
    with pytest.raises(UnicodeDecodeError):
        pieces[0].decode()


def test_a_special_token_is_spelt_by_its_name_and_an_id_without_a_token_by_nothing(tokenizer: TextTokenizer) -> None:
    spelling = Spelling(tokenizer)
    assert spelling.bytes_of(tokenizer.special_ids["<|im_end|>"]) == b"<|im_end|>"
    assert spelling.bytes_of(99_999) == b""


def test_tokenizers_whose_tokens_depend_on_their_neighbours_spell_them_as_a_text_begins() -> None:
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "cat": 1, "##s": 2}, unk_token="[UNK]"))
    spelling = Spelling(TextTokenizer(words, end_tokens=[]))
    assert spelling.bytes_of(1) == b"cat"
    assert spelling.bytes_of(99) == b""


def test_every_token_that_is_named_is_spelt_once(tokenizer: TextTokenizer) -> None:
    noted = [None, TokenLogprob(token_id=70, logprob=-1.0, top=((71, -0.5), (70, -1.0)))]
    spelling = Spelling(tokenizer)
    found = spelling.of(noted, [72])
    assert found == {token: spelling.bytes_of(token) for token in (70, 71, 72)}
