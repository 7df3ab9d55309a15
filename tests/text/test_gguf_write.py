import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from danlu.core.errors import ModelError
from danlu.text.chat import ChatFormat
from danlu.text.gguf import PRE_TOKENIZERS, WHOLE_FIRST
from danlu.text.gguf_write import gguf_tokenizer
from danlu.text.sentencepiece import BPE, BYTE, CONTROL, NORMAL, UNKNOWN, Piece, Pieces, build_sentencepiece
from danlu.text.tokenizer import TextTokenizer, tokenizer_from_gguf
from tests.tiny import TEMPLATE, make_tokenizer

TEXTS = (
    "The navy dress, 100% cotton.",
    "  two  spaces\n\n\tand 12345 tabs ",
    "I'LL don't — 面料柔软 👗é",
    "<s> a </s>",
)


def byte_level(pre: str) -> Tokenizer:
    """The tiny vocabulary behind another cut."""
    whole = json.loads(make_tokenizer().to_str())
    whole["model"]["ignore_merges"] = pre in WHOLE_FIRST
    tokenizer = Tokenizer.from_str(json.dumps(whole))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
    return tokenizer


def sentencepiece(*, prefix: bool = True) -> Tokenizer:
    """A vocabulary with byte pieces and scores, as Llama 2's."""
    words = [
        "\u2581t",
        "he",
        "\u2581the",
        "na",
        "vy",
        "navy",
        "\u2581navy",
        "dr",
        "ess",
        "dress",
        "\u2581dress",
        "er",
        "in",
    ]
    letters = sorted({*"abcdefghijklmnopqrstuvwxyz.,ILTHE'0123456789\u2581"})
    pieces = [Piece(text="<unk>", kind=UNKNOWN), Piece(text="<s>", kind=CONTROL), Piece(text="</s>", kind=CONTROL)]
    pieces += [Piece(text=f"<0x{byte:02X}>", kind=BYTE) for byte in range(256)]
    pieces += [Piece(text=word, score=-float(rank), kind=NORMAL) for rank, word in enumerate(words)]
    pieces += [Piece(text=letter, score=-100.0 - rank, kind=NORMAL) for rank, letter in enumerate(letters)]
    model = Pieces(
        pieces=tuple(pieces), model_type=BPE, byte_fallback=True, unk_id=0, add_dummy_prefix=prefix,
        remove_extra_whitespaces=False, charsmap=b"",
    )  # fmt: skip
    return build_sentencepiece(model)


def chat(backend: Tokenizer, end: str, begin: str | None = None) -> ChatFormat:
    return ChatFormat(TextTokenizer(backend, end_tokens=[end], begin_token=begin), TEMPLATE)


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_known_cut_is_found_by_what_it_does(pre: str) -> None:
    before = chat(byte_level(pre), "<|im_end|>")
    metadata = gguf_tokenizer(before, before.tokenizer.vocabulary_size)
    assert metadata["tokenizer.ggml.pre"] in PRE_TOKENIZERS
    after = tokenizer_from_gguf(metadata)
    for text in TEXTS:
        assert after.encode(text) == before.tokenizer.encode(text)


@pytest.mark.parametrize("prefix", [True, False], ids=["prefix", "bare"])
def test_merges_become_scores_that_merge_alike(prefix: bool) -> None:
    before = chat(sentencepiece(prefix=prefix), "</s>", "<s>")
    metadata = gguf_tokenizer(before, before.tokenizer.vocabulary_size)
    assert metadata["tokenizer.ggml.model"] == "llama"
    assert metadata["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    assert metadata["tokenizer.ggml.add_space_prefix"] is prefix
    after = tokenizer_from_gguf(metadata)
    for text in ("the navy dress", "navy dresser in the", *TEXTS):
        assert after.encode(text) == before.tokenizer.encode(text)
        assert after.decode(after.encode(text)) == before.tokenizer.decode(before.tokenizer.encode(text))


def test_tokens_that_frame_a_text_are_said() -> None:
    backend = make_tokenizer()
    begin, end = "<|im_start|>", "<|im_end|>"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, 1), (end, 2)]
    )
    metadata = gguf_tokenizer(chat(backend, end, begin), 500)
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.ggml.add_eos_token"] is True
    assert (metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]) == (1, 2)
    assert metadata["tokenizer.ggml.token_type"][499] == 5


def test_a_second_end_of_answers_is_said() -> None:
    backend = make_tokenizer()
    two = ChatFormat(TextTokenizer(backend, end_tokens=["<|endoftext|>", "<|im_end|>"]), None)
    metadata = gguf_tokenizer(two, 420)
    assert (metadata["tokenizer.ggml.eos_token_id"], metadata["tokenizer.ggml.eot_token_id"]) == (0, 2)
    assert "tokenizer.chat_template" not in metadata


def test_a_cut_that_no_reader_knows_is_refused() -> None:
    backend = make_tokenizer()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    with pytest.raises(ModelError, match=r"No GGUF reader knows how this tokenizer cuts text.* Known cuts: default"):
        gguf_tokenizer(chat(backend, "<|im_end|>"), 500)
    backend = make_tokenizer()
    backend.normalizer = normalizers.Lowercase()
    with pytest.raises(ModelError, match="No GGUF reader knows"):
        gguf_tokenizer(chat(backend, "<|im_end|>"), 500)


def test_other_kinds_of_tokenizers_are_refused() -> None:
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ModelError, match=r"A WordPiece tokenizer cannot be written as GGUF\. Byte-level and other BPE"):
        gguf_tokenizer(ChatFormat(TextTokenizer(backend, end_tokens=["a"]), None), 10)
