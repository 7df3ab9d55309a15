from collections.abc import Callable

import pytest

from danlu.models.loaded import LoadedModel
from danlu.text.token_bytes import token_bytes
from danlu.text.tokenizer import TextTokenizer
from tests.text import tokenizers as kinds

TEXT = 'A navy dress, {"soft": 1}\n面料 👗é'


@pytest.mark.parametrize("make", [kinds.byte_level, kinds.roberta, kinds.llama3_like, kinds.sentencepiece_bpe])
def test_the_bytes_of_tokens_join_to_the_text(make: Callable[[], TextTokenizer]) -> None:
    tokenizer = make()
    pieces = token_bytes(tokenizer)
    assert pieces is not None
    assert b"".join(pieces[index] for index in tokenizer.encode_rest(TEXT)).decode() == TEXT
    assert all(pieces[index] == b"" for index in tokenizer.special_ids.values())


def test_marked_spaces_are_spaces() -> None:
    tokenizer = kinds.unigram()
    pieces = token_bytes(tokenizer)
    assert pieces is not None
    assert b"".join(pieces[index] for index in tokenizer.encode("soft and lined")).strip() == b"soft and lined"


def test_tokens_that_depend_on_their_neighbours_have_no_bytes() -> None:
    assert token_bytes(kinds.wordpiece()) is None


@pytest.mark.model
def test_the_bytes_of_every_real_token_are_what_it_decodes_to(smollm2: LoadedModel) -> None:
    tokenizer = smollm2.model.chat.tokenizer
    pieces = token_bytes(tokenizer)
    assert pieces is not None
    special = set(tokenizer.special_ids.values())
    for index, piece in enumerate(pieces):
        assert piece.decode("utf-8", errors="replace") == ("" if index in special else tokenizer.decode([index]))
