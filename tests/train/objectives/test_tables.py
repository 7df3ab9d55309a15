"""Which pieces begin words and end sentences, in three kinds of tokenizers."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from danlu.core.errors import ConfigError
from danlu.text.tokenizer import TextTokenizer
from danlu.train.objectives.tables import begins_word, ends_sentence, is_special, sentinels

from ..corpus import fresh, tokenizer


def wordpiece() -> TextTokenizer:
    vocabulary = {"[UNK]": 0, "play": 1, "##ing": 2, "中": 3, ".": 4}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.WordPiece()  # pyright: ignore[reportAttributeAccessIssue]
    return TextTokenizer(backend, end_tokens=[])


def test_pieces_of_a_wordpiece_that_go_on_are_marked() -> None:
    assert begins_word(wordpiece(), 6).tolist() == [True, True, False, True, True, True]


def test_pieces_of_byte_level_bpe_begin_words_with_their_space() -> None:
    known = tokenizer()
    begins = begins_word(known, known.vocabulary_size)
    text = "The cotton dress."
    pieces = known.encode(text)
    words = [known.decode([index]) for index in pieces if begins[index]]
    assert "".join(words).count(" ") == 2
    assert begins[pieces[-1]], "a full stop is a word"
    assert not begins[known.encode("e")[0]]
    first, *rest = known.encode("中")
    assert not any(begins[index] for index in rest), "halves of a character stay together"
    assert first != rest


def test_full_stops_of_both_languages_and_line_breaks_end_sentences() -> None:
    known = tokenizer()
    ends = ends_sentence(known, known.vocabulary_size)
    assert [bool(ends[known.encode(sign)[-1]]) for sign in (".", "!", "?", "\n", ",", "a")] == [
        True, True, True, True, False, False
    ]  # fmt: skip


def test_ids_beyond_the_tokenizer_are_no_text() -> None:
    known = tokenizer()
    flags = is_special(known, known.vocabulary_size + 3)
    assert flags[-3:].all()
    assert flags.sum() == 3 + 3


def test_named_sentinels_come_first() -> None:
    model = fresh("t5", spare_ids=20)
    model._chat.tokenizer = tokenizer("<extra_id_1>", "<extra_id_0>")  # pyright: ignore
    special = model.chat.tokenizer.special_ids
    assert sentinels(model) == (special["<extra_id_0>"], special["<extra_id_1>"])


def test_a_model_without_spare_ids_cannot_learn_spans() -> None:
    model = fresh("t5", vocabulary_multiple=1)
    with pytest.raises(
        ConfigError, match=r"The model has 42\d ids and the tokenizer uses all: none can stand for a span\. Make the "
    ):
        sentinels(model)
