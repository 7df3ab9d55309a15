from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.core.errors import ModelError
from danlu.models.loaded import LoadedModel
from danlu.text.tokenizer import TextStream, TextTokenizer, load_tokenizer
from tests.tiny import SPECIAL, make_tokenizer

TOKENIZER = TextTokenizer(make_tokenizer(), end_tokens=["<|im_end|>"], begin_token="<|im_start|>")

texts = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("面料👗👩‍👩‍👧é \n\t")), max_size=40)
texts_with_special = st.lists(st.one_of(texts, st.sampled_from(SPECIAL)), max_size=6).map("".join)


@given(texts_with_special)
def test_any_text_comes_back_from_its_ids(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(texts_with_special)
def test_ordinary_text_never_makes_a_special_token(text: str) -> None:
    assert not set(TOKENIZER.encode(text)) & set(TOKENIZER.special_ids.values())


def test_decoding_leaves_special_tokens_out_and_marks_broken_bytes() -> None:
    ids = TOKENIZER.encode("衣")
    assert TOKENIZER.decode([*TOKENIZER.end_ids, *ids, *TOKENIZER.end_ids]) == "衣"
    assert TOKENIZER.decode(ids[:-1]) == "\ufffd"


def streamed(tokenizer: TextTokenizer, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push(i) for i in ids), stream.finish()]


@given(texts)
def test_streamed_pieces_of_a_text_join_to_it(text: str) -> None:
    assert "".join(streamed(TOKENIZER, TOKENIZER.encode(text))) == text


@given(st.lists(st.one_of(st.integers(0, 419), st.integers(3, 258)), max_size=60))
def test_streamed_pieces_of_any_ids_join_to_their_text(ids: list[int]) -> None:
    """Ids of single bytes in any order: lone, cut and overlong characters, special tokens between."""
    assert "".join(streamed(TOKENIZER, ids)) == TOKENIZER.decode(ids)


def test_a_character_is_streamed_once_it_is_whole() -> None:
    ids = TOKENIZER.encode("a👗b")
    assert len(ids) == 6
    assert streamed(TOKENIZER, ids) == ["a", "", "", "", "👗", "b", ""]


def test_a_run_of_broken_bytes_does_not_swallow_the_character_after_it() -> None:
    broken = TOKENIZER.encode("面")[1:2] * 12
    ids = [*broken, *TOKENIZER.encode("面料")]
    assert "".join(streamed(TOKENIZER, ids)) == "\ufffd" * 12 + "面料"


def test_an_answer_cut_inside_a_character_ends_with_a_mark() -> None:
    assert streamed(TOKENIZER, TOKENIZER.encode("好")[:2]) == ["", "", "\ufffd"]


def test_a_saved_tokenizer_reads_special_tokens_as_others_expect(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    from tokenizers import Tokenizer

    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode("hi<|im_end|>").ids == [*TOKENIZER.encode("hi"), TOKENIZER.special_ids["<|im_end|>"]]
    assert TOKENIZER.encode("<|im_end|>") != [TOKENIZER.special_ids["<|im_end|>"]]  # ours still reads it as text
    config = {"eos_token": {"content": "<|im_end|>"}, "bos_token": "<|im_start|>"}
    again = load_tokenizer(tmp_path, config)
    assert again.encode("a navy dress") == TOKENIZER.encode("a navy dress")
    assert (again.end_ids, again.begin_id) == (TOKENIZER.end_ids, TOKENIZER.begin_id)
    assert again.vocabulary_size == TOKENIZER.vocabulary_size


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no tokenizer\.json\. Copy it from the model's own repository"):
        load_tokenizer(tmp_path, {})
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ModelError, match=r"tokenizer\.json is not a tokenizer: .*It may be damaged"):
        load_tokenizer(tmp_path, {})


def test_an_end_token_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ModelError, match=r"The tokenizer has no token '</s>'. Is the tokenizer from the same model"):
        TextTokenizer(make_tokenizer(), end_tokens=["</s>"])


@pytest.mark.model
def test_ids_of_a_thousand_real_reviews_equal_those_of_transformers(
    smollm2: LoadedModel, peer_tokenizer: Any, reviews_parquet: Path
) -> None:
    column = pq.read_table(reviews_parquet)["Review Text"].to_pylist()
    lines = [text for text in column if text][:1000]
    assert len(set(lines)) > 990
    ours = [smollm2.model.chat.tokenizer.encode(line) for line in lines]
    assert ours == peer_tokenizer(lines)["input_ids"]
    odd = [
        "面料是纯棉的，柔软透气。",
        "👗✨ 5'8\" 130lbs 34DD",
        "  two  spaces\n\n\tand a tab ",
        "naïve café – “quoted”",
    ]
    assert [smollm2.model.chat.tokenizer.encode(text) for text in odd] == peer_tokenizer(odd)["input_ids"]


def test_many_texts_are_framed_as_each_alone() -> None:
    several = ["a dress", ("soft fabric", "I love it!"), "", "面料 👗"]
    for limit in (None, 3):
        for text, found in zip(several, TOKENIZER.encode_framed(several, max_tokens=limit), strict=True):
            first, second = text if isinstance(text, tuple) else (text, None)
            assert (found.ids, found.type_ids) == TOKENIZER.encode_with_specials(first, second, max_tokens=limit)
