"""SentencePiece models: ids that the sentencepiece package (0.2.3) gave for the same models, and damaged files."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.core.errors import ModelError
from danlu.text.sentencepiece import build_sentencepiece, check_charsmap, read_sentencepiece
from danlu.text.tokenizer import TextTokenizer
from tests.text.tokenizers import SPM_BPE, SPM_UNIGRAM, spm_bytes, spm_field

TEXTS = [
    "navy dress", "navy  dress s", "面料 navy面料", "</s> <s> <unk>", "<0x0A>", "", "   ", " navy ", "nav👗y",
    "dress\nnavy", "▁navy", "a<s></s>面",
]  # fmt: skip
KNOWN = {
    "unigram": [
        [4, 5], [4, 5, 3, 6], [3, 8, 4, 8], [3, 11, 13, 6, 12, 3, 11, 6, 12, 3, 11, 0, 15, 0, 12], [3, 11, 0, 12], [],
        [], [4], [3, 18, 16, 0, 17], [5, 0, 18, 16, 17], [3, 4], [3, 14, 11, 6, 12, 11, 13, 6, 12, 9],
    ],
    "unigram_spaces": [
        [4, 5], [4, 3, 5, 3, 6], [3, 8, 4, 8], [3, 11, 13, 6, 12, 3, 11, 6, 12, 3, 11, 0, 15, 0, 12], [3, 11, 0, 12],
        [], [3, 3, 3, 3], [3, 4, 3], [3, 18, 16, 0, 17], [5, 0, 18, 16, 17], [3, 4],
        [3, 14, 11, 6, 12, 11, 13, 6, 12, 9],
    ],
    "bpe": [
        [262, 268], [262, 276, 268, 276, 284], [276, 263, 262, 263],
        [276, 272, 273, 275, 273, 275, 120, 277, 110, 289], [275, 51, 123, 51, 68, 289], [], [270, 270],
        [276, 262, 276], [261, 243, 162, 148, 154, 280], [268, 13, 277, 260, 280], [276, 262],
        [276, 278, 287, 273, 272, 273, 285],
    ],
    "bpe_noprefix": [
        [277, 260, 280, 268], [277, 260, 280, 276, 268, 276, 284], [263, 262, 263],
        [272, 273, 275, 273, 275, 120, 277, 110, 289], [287, 51, 123, 51, 68, 289], [], [274], [262, 276],
        [277, 260, 243, 162, 148, 154, 280], [269, 13, 277, 260, 280], [262], [278, 287, 273, 272, 273, 285],
    ],
}  # fmt: skip
MODELS = {
    "unigram": spm_bytes(SPM_UNIGRAM, {3: 1}),
    "unigram_spaces": spm_bytes(SPM_UNIGRAM, {3: 1}, {4: 0}),
    "bpe": spm_bytes(SPM_BPE, {3: 2, 35: 1}, {4: 0}),
    "bpe_noprefix": spm_bytes(SPM_BPE, {3: 2, 35: 1}, {3: 0, 4: 0}),
}


def load(data: bytes, folder: Path) -> TextTokenizer:
    path = folder / "tokenizer.model"
    path.write_bytes(data)
    return TextTokenizer(build_sentencepiece(read_sentencepiece(path)), end_tokens=["</s>"])


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_those_of_the_sentencepiece_package(name: str, tmp_path: Path) -> None:
    tokenizer = load(MODELS[name], tmp_path)
    assert [tokenizer.encode(text) for text in TEXTS] == KNOWN[name]


@pytest.mark.parametrize("name", ["bpe", "bpe_noprefix"])
def test_byte_fallback_brings_every_text_back(name: str, tmp_path: Path) -> None:
    tokenizer = load(MODELS[name], tmp_path)
    generator = random.Random(3)
    for _ in range(300):
        text = "".join(generator.choice("navy dress面料👗é\n\t\0<>/|0x") for _ in range(generator.randrange(12)))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def charsmap(pairs: dict[int, int], texts: bytes) -> bytes:
    """A table whose trie maps single bytes to places among ``texts``."""
    units = [0] * 512
    units[0] = 256 << 10  # the root: its children stand from 256 on
    for byte, place in pairs.items():
        leaf = (256 ^ byte) ^ 1
        units[256 ^ byte] = byte | 1 << 8 | 1 << 10
        units[leaf] = 1 << 31 | place
    return struct.pack("<I", 2048) + struct.pack("<512I", *units) + texts


def test_a_normalisation_table_is_applied(tmp_path: Path) -> None:
    table = charsmap({ord("N"): 0, ord("Q"): 2}, b"n\0navy\0")
    tokenizer = load(spm_bytes(SPM_UNIGRAM, {3: 1}, {2: table}), tmp_path)
    assert tokenizer.encode("Navy Q dress") == tokenizer.encode("navy navy dress")


@given(st.integers(0, 2055), st.integers(0, 255))
def test_a_damaged_normalisation_table_is_refused_or_safe(place: int, byte: int) -> None:
    table = bytearray(charsmap({ord("N"): 0, ord("Q"): 2}, b"n\0navy\0"))
    table[place] = byte
    try:
        check_charsmap(bytes(table))
    except ModelError as error:
        assert "The vocabulary is damaged: the normalisation table" in str(error)  # noqa: PT017
        return
    model = build_sentencepiece_from(spm_bytes(SPM_UNIGRAM, {3: 1}, {2: bytes(table)}))
    for text in ("Navy Q", "".join(map(chr, range(1, 256))), "面料👗"):
        assert all(0 <= token < model.vocabulary_size for token in model.encode(text))


def build_sentencepiece_from(data: bytes) -> TextTokenizer:
    from danlu.text.sentencepiece import parse_sentencepiece

    return TextTokenizer(build_sentencepiece(parse_sentencepiece(data)), end_tokens=[])


SMALL = spm_bytes(SPM_UNIGRAM, {3: 1}, {2: charsmap({78: 0}, b"n\0")})


@given(st.data())
def test_whatever_is_wrong_with_a_file_is_a_model_error(data: st.DataObject) -> None:
    damaged = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["set", "cut", "insert", "drop"]))
        place = data.draw(st.integers(0, max(len(damaged) - 1, 0)))
        if kind == "set" and damaged:
            damaged[place] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del damaged[place:]
        elif kind == "insert":
            damaged[place:place] = data.draw(st.binary(max_size=8))
        else:
            del damaged[place : place + 3]
    _try(bytes(damaged))


def test_the_file_that_is_damaged_is_whole_before() -> None:
    assert _try(SMALL)


@given(st.binary(max_size=200))
def test_random_bytes_are_a_model_error(data: bytes) -> None:
    _try(data)


def _try(data: bytes) -> list[int] | None:
    """Ids of a text, all of them in the vocabulary; None when the file is refused."""
    path = Path(__file__).with_name("never.model")
    reader = _Bytes(path, data)
    try:
        tokenizer = build_sentencepiece(read_sentencepiece(reader))
    except ModelError:
        return None
    ids = tokenizer.encode("navy Nr 面料👗</s>").ids
    assert all(tokenizer.id_to_token(token) is not None for token in ids)
    return ids


class _Bytes(type(Path())):  # pyright: ignore[reportUntypedBaseClass]
    """A path whose file is in memory."""

    def __new__(cls, path: Path, data: bytes) -> _Bytes:
        made = super().__new__(cls, path)
        made.data = data
        return made

    def stat(self, **_: object) -> object:
        return type("Stat", (), {"st_size": len(self.data)})()

    def read_bytes(self) -> bytes:
        return self.data


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", r"is not a SentencePiece model: it has no pieces\. It may be damaged"),
        (b"\x0a\xff", "it ends inside a number"),
        (b"\x0a\x7fabc", "field 1 goes on behind its end"),
        (b"\x0b", "a field has the wire type 3"),
        (b"\xff" * 11, "a number has more than ten bytes"),
        (spm_bytes([("a", float("nan"), 1)]), "piece 0 has the score nan"),
        (spm_bytes([("", 0.0, 1)]), "piece 0 has 0 bytes and the kind 1"),
        (spm_bytes([("a", 0.0, 9)]), "piece 0 has 1 bytes and the kind 9"),
        (spm_field(1, spm_field(1, b"\xff")), "piece 0 is not UTF-8"),
        (spm_bytes([("a", 0.0, 1)]), "it has 0 unknown pieces, not one"),
        (spm_bytes(SPM_UNIGRAM, {3: 3}), "The SentencePiece model is of whole words. Unigram, BPE and character"),
        (spm_bytes(SPM_UNIGRAM, {24: 1}), "The SentencePiece model puts spaces at the ends of words"),
        (spm_bytes(SPM_UNIGRAM, {}, {5: 0}), "The SentencePiece model does not mark spaces"),
        (spm_bytes([*SPM_UNIGRAM, ("面", 0.0, 1)]), "The vocabulary has '面' twice"),
        (spm_bytes(SPM_UNIGRAM, {}, {2: b"\x01"}), "the normalisation table has no size"),
        (spm_bytes(SPM_UNIGRAM, {}, {2: b"\xff\xff\0\0"}), "the normalisation table claims 65535 bytes of 0"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(data: bytes, text: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=text):
        load(data, tmp_path)


def test_text_that_spells_a_byte_is_not_that_byte(tmp_path: Path) -> None:
    letters = [(letter, -9.0, 1) for letter in "0xA"]
    pieces = [*SPM_UNIGRAM, *letters, *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256))]
    tokenizer = load(spm_bytes(pieces, {3: 1, 35: 1}), tmp_path)
    newline = tokenizer.backend.token_to_id("<0x0A>")
    assert newline not in tokenizer.encode("<0x0A>")
    assert newline in tokenizer.encode("a\na")
