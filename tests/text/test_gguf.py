"""Tokenizers out of GGUF metadata, each kind against the same tokenizer made another way."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.core.errors import ModelError
from danlu.text.sentencepiece import build_sentencepiece, parse_sentencepiece
from danlu.text.tokenizer import TextTokenizer, tokenizer_from_gguf
from tests.text.tokenizers import SPM_BPE, SPM_UNIGRAM, SpmPiece, byte_level, spm_bytes, wordpiece
from tests.tiny import SPECIAL, make_tokenizer

texts = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("面料👗navy dress<>/s \n\t")), max_size=30)
texts_with_special = st.lists(st.one_of(texts, st.sampled_from(SPECIAL)), max_size=6).map("".join)


def keyed(values: dict[str, Any]) -> dict[str, Any]:
    return {f"tokenizer.ggml.{name}": value for name, value in values.items()}


def metadata(**changes: object) -> dict[str, Any]:
    """Of a byte-level tokenizer."""
    backend = make_tokenizer()
    vocabulary = sorted(backend.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    merges = json.loads(backend.to_str())["model"]["merges"]
    whole: dict[str, Any] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [token for token, _ in vocabulary],
        "token_type": [3, 3, 3] + [1] * (len(vocabulary) - 3),
        "merges": [" ".join(pair) for pair in merges],
        "eos_token_id": 2,
    }
    return keyed({**whole, **changes})


def spm_metadata(pieces: list[SpmPiece], **changes: object) -> dict[str, Any]:
    """Of a SentencePiece model."""
    tokens, scores, types = (list(column) for column in zip(*pieces, strict=True))
    whole = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": types}
    return keyed({**whole, "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, **changes})


FROM_GGUF, SOURCE = tokenizer_from_gguf(metadata()), byte_level()


@given(texts_with_special)
def test_byte_level_ids_are_the_same(text: str) -> None:
    assert FROM_GGUF.encode(text) == SOURCE.encode(text)


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "in 2023's", ["in", " ", "2", "0", "2", "3", "'s"]),
        ("gpt-2", "in 2023's", ["in", " 2023", "'s"]),
        ("olmo", "in 2023's", ["in", " 2023", "'s"]),
        ("llama-bpe", "in 2023's\n\n(x", ["in", " ", "202", "3", "'s", "\n\n", "(x"]),
        ("dbrx", "IN'S 面料Ab", ["IN", "'S", " 面料Ab"]),
        ("qwen2", "in 2023's", ["in", " ", "2", "0", "2", "3", "'s"]),
        ("gpt-4o", "camelCase HTTPServer's x/\n2023", ["camel", "Case", " HTTPServer's", " x", "/\n", "202", "3"]),
        ("tekken", "camelCase's 23", ["camel", "Case", "'s", " ", "2", "3"]),
        ("deepseek-v3", "a面料b 2023!x ok", ["a", "面料", "b", " ", "202", "3", "!x", " ok"]),
    ],
)
def test_each_family_cuts_text_in_its_own_way(pre: str, text: str, pieces: list[str]) -> None:
    splitter = tokenizer_from_gguf(metadata(pre=pre)).backend.pre_tokenizer
    found = splitter.pre_tokenize_str(text)
    shown = [text[start:end] for _, (start, end) in found]
    assert shown == pieces


def test_families_that_take_whole_pieces_first_do_so() -> None:
    first = tokenizer_from_gguf(metadata(pre="llama-bpe")).backend
    assert first.model.ignore_merges
    assert not tokenizer_from_gguf(metadata(pre="qwen2")).backend.model.ignore_merges


@given(texts)
def test_a_llama_vocabulary_is_sentencepiece_bpe(text: str) -> None:
    assert LLAMA.encode(text) == LLAMA_SOURCE.encode(text)
    assert LLAMA.decode(LLAMA.encode(text)) == text


def of_file(data: bytes) -> TextTokenizer:
    return TextTokenizer(build_sentencepiece(parse_sentencepiece(data)), end_tokens=["</s>"])


LLAMA = tokenizer_from_gguf(spm_metadata(SPM_BPE))
LLAMA_SOURCE = of_file(spm_bytes(SPM_BPE, {3: 2, 35: 1}, {4: 0}))


@given(texts)
def test_a_t5_vocabulary_is_a_unigram_model(text: str) -> None:
    assert T5.encode(text) == T5_SOURCE.encode(text)


T5 = tokenizer_from_gguf(spm_metadata(SPM_UNIGRAM, model="t5"))
T5_SOURCE = of_file(spm_bytes(SPM_UNIGRAM, {3: 1}))


def test_special_tokens_of_a_llama_vocabulary_have_their_roles() -> None:
    assert (LLAMA.begin_id, LLAMA.end_ids, LLAMA.unk_id, LLAMA.prefix) == (1, {2}, 0, "always")
    bare = tokenizer_from_gguf(spm_metadata(SPM_BPE, add_space_prefix=False))
    assert bare.prefix == "never"
    assert not {0, 1, 2} & set(LLAMA.encode("<s></s><unk>"))


def test_user_defined_tokens_are_found_in_text_and_shown() -> None:
    own = [*SPM_BPE, ("<think>", 0.0, 4)]
    tokenizer = tokenizer_from_gguf(spm_metadata(own))
    ids = tokenizer.encode("<think>navy")
    assert ids[0] == len(SPM_BPE)
    assert tokenizer.decode(ids).startswith("<think>")


def test_a_bert_vocabulary_is_wordpiece() -> None:
    source = wordpiece()
    tokens = sorted(source.backend.get_vocab(), key=source.backend.token_to_id)
    marked = [t if t.startswith("[") and len(t) > 2 else t[2:] if t.startswith("##") else f"▁{t}" for t in tokens]
    whole = {"model": "bert", "tokens": marked, "token_type": [3] * 5 + [1] * (len(tokens) - 5)}
    roles = {"cls_token_id": 2, "seperator_token_id": 3, "padding_token_id": 0, "unknown_token_id": 1}
    tokenizer = tokenizer_from_gguf(keyed({**whole, **roles, "mask_token_id": 4}))
    for text in ("A soft navy dress, lined!", "面料 unbelievable", "[MASK] [CLS]"):
        assert tokenizer.encode(text) == source.encode(text)
        assert tokenizer.encode_with_specials(text, "navy") == source.encode_with_specials(text, "navy")
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.mask_id) == (0, 1, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "rwkv"}, "The GGUF file's tokenizer is 'rwkv' with pre-tokenizer 'gpt-2'. Byte-level BPE"),
        ({"pre": "chatglm-bpe"}, "is 'gpt2' with pre-tokenizer 'chatglm-bpe'. Byte-level BPE (gpt2) with one of"),
        ({"token_type": [3]}, "The GGUF file has 420 tokens but 1 token types. It is damaged"),
        ({"model": "llama"}, "The GGUF metadata lacks tokenizer.ggml.scores. The file may be damaged"),
        ({"eos_token_id": 420}, "The GGUF file's eos_token is 420 of 420 tokens. It is damaged"),
        ({"merges": ["a zz"]}, "The GGUF file's vocabulary cannot be used: "),
        ({"model": "llama", "scores": [0.0]}, "The GGUF file has 420 tokens and 1 scores. It is damaged"),
        ({"model": "bert"}, "The GGUF file's 420 tokens make "),
        (
            {"model": "t5", "scores": [0.0] * 420, "precompiled_charsmap": [1, 2, 3]},
            "The vocabulary is damaged: the normalisation table has no size. Fetch it again",
        ),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError) as error:
        tokenizer_from_gguf(metadata(**changes))
    assert message in str(error.value)
