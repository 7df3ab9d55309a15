"""Reads SentencePiece models (tokenizer.model, spiece.model, *.spm) and rebuilds them on the ``tokenizers`` library.

The file is a protocol buffer from strangers: every length, type and table in it is checked before use, and whatever is
wrong is a ModelError. Unigram (Kudo 2018, arXiv:1804.10959) and BPE (Sennrich et al. 2016, arXiv:1508.07909) models are
read, with byte fallback and SentencePiece's own normalisation tables. Knows nothing of folders, families or chats.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from danlu.core.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of pieces, as SentencePiece and GGUF number them."""
UNIGRAM, BPE, WORD, CHAR = 1, 2, 3, 4

SPACE = "▁"
"""What stands for a space inside pieces (U+2581)."""

_MAX_FILE_BYTES = 128 << 20
_MAX_PIECES = 2_000_000
_MAX_PIECE_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One entry of the vocabulary; its place in the list is its id."""

    text: str
    score: float = 0.0
    kind: int = NORMAL


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """A SentencePiece model: the vocabulary, and how text is prepared for it."""

    pieces: tuple[Piece, ...]
    """By id."""
    model_type: int = UNIGRAM
    """UNIGRAM or BPE (CHAR is BPE without merges)."""
    byte_fallback: bool = False
    """Write unknown characters as their UTF-8 bytes."""
    unk_id: int = 0
    """Id of what cannot be written otherwise."""
    add_dummy_prefix: bool = True
    """Begin a text with a space."""
    remove_extra_whitespaces: bool = True
    """Drop spaces at both ends and all but one of a run."""
    charsmap: bytes = b""
    """SentencePiece's compiled normalisation table; empty changes nothing."""


def read_sentencepiece(path: Path) -> Pieces:
    """The model in ``path``; ModelError when it is damaged or of a kind that cannot be rebuilt."""
    try:
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise ModelError(f"{path} has {size:,} bytes.", "A SentencePiece model has a few megabytes.")
        return parse_sentencepiece(path.read_bytes())
    except _Damaged as error:
        raise ModelError(
            f"{path} is not a SentencePiece model: {error}.", "It may be damaged; fetch it again."
        ) from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error


class _Damaged(Exception):
    """What is wrong with the bytes."""


# ---- the protocol buffer -------------------------------------------------------------------------------------------


def parse_sentencepiece(data: bytes) -> Pieces:
    """The model in ``data``. Raises _Damaged (inside this file) or ModelError for kinds that cannot be rebuilt."""
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            if len(pieces) == _MAX_PIECES:
                raise _Damaged(f"it has more than {_MAX_PIECES:,} pieces")
            pieces.append(_piece(_as_bytes(value), len(pieces)))
        elif number == 2:
            trainer |= dict(_fields(_as_bytes(value)))
        elif number == 3:
            normalizer |= dict(_fields(_as_bytes(value)))
    if not pieces:
        raise _Damaged("it has no pieces")
    _refuse_unusual(trainer, normalizer)
    charsmap = _as_bytes(normalizer.get(2, b""))
    _check_charsmap(charsmap)
    unknown = [index for index, piece in enumerate(pieces) if piece.kind == UNKNOWN]
    if len(unknown) != 1:
        raise _Damaged(f"it has {len(unknown)} unknown pieces, not one")
    return Pieces(
        pieces=tuple(pieces),
        model_type=_as_int(trainer.get(3, UNIGRAM)),
        byte_fallback=bool(_as_int(trainer.get(35, 0))),
        unk_id=unknown[0],
        add_dummy_prefix=bool(_as_int(normalizer.get(3, 1))),
        remove_extra_whitespaces=bool(_as_int(normalizer.get(4, 1))),
        charsmap=charsmap,
    )


def _refuse_unusual(trainer: dict[int, int | bytes], normalizer: dict[int, int | bytes]) -> None:
    """Settings that exist but that no model in use has."""
    if _as_int(trainer.get(3, UNIGRAM)) not in (UNIGRAM, BPE, CHAR):
        kind = {WORD: "whole words"}.get(_as_int(trainer[3]), f"type {trainer[3]!r}")
        raise ModelError(f"The SentencePiece model is of {kind}.", "Unigram, BPE and character models can be read.")
    if _as_int(trainer.get(24, 0)):
        raise ModelError("The SentencePiece model puts spaces at the ends of words.", "This is not supported.")
    if not _as_int(normalizer.get(5, 1)):
        raise ModelError("The SentencePiece model does not mark spaces.", "This is not supported.")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of one message: whole numbers as int, everything else as bytes."""
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if not number:
            raise _Damaged("a field has the number 0")
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == 2:
            length, position = _varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise _Damaged(f"a field has the wire type {wire}")
        if length > end - position:
            raise _Damaged(f"field {number} goes on behind its end")
        yield number, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position == len(data):
            raise _Damaged("it ends inside a number")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
    raise _Damaged("a number has more than ten bytes")


def _as_bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise _Damaged("a field is a number where bytes were expected")
    return value


def _as_int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise _Damaged("a field is bytes where a number was expected")
    return value


def _piece(data: bytes, index: int) -> Piece:
    text, score, kind = b"", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1:
            text = _as_bytes(value)
        elif number == 2:
            value = _as_bytes(value)
            if len(value) != 4:
                raise _Damaged(f"the score of piece {index} is no 32-bit number")
            (score,) = struct.unpack("<f", value)
        elif number == 3:
            kind = _as_int(value)
    if not 0 < len(text) <= _MAX_PIECE_BYTES or kind not in (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE):
        raise _Damaged(f"piece {index} has {len(text)} bytes and the kind {kind}")
    if not math.isfinite(score):
        raise _Damaged(f"piece {index} has the score {score}")
    try:
        return Piece(text=text.decode("utf-8"), score=score, kind=kind)
    except UnicodeDecodeError as error:
        raise _Damaged(f"piece {index} is not UTF-8") from error


def check_charsmap(charsmap: bytes) -> bytes:
    """``charsmap`` itself when it can be walked safely; ModelError otherwise."""
    try:
        _check_charsmap(charsmap)
    except _Damaged as error:
        raise ModelError(f"The vocabulary is damaged: {error}.", "Fetch it again.") from error
    return charsmap


def _check_charsmap(charsmap: bytes) -> None:
    """Refuse a table whose look-ups could leave it: the library that walks it does not check.

    Layout: size of the trie in bytes, the trie (a double array of 32-bit units), then the replacements, each ended by
    a zero byte. A unit holds a label (low byte), an offset (from bit 10, times 256 if bit 9 is set) and, in bit 8,
    whether a value stands at its offset; bit 31 marks the values, which are positions among the replacements.
    """
    if not charsmap:
        return
    if len(charsmap) < 4:
        raise _Damaged("the normalisation table has no size")
    (size,) = struct.unpack_from("<I", charsmap)
    if size % 1024 or not 0 < size <= len(charsmap) - 4:
        raise _Damaged(f"the normalisation table claims {size} bytes of {len(charsmap) - 4}")
    units = struct.unpack_from(f"<{size // 4}I", charsmap, 4)
    texts = charsmap[4 + size :]
    try:
        texts.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Damaged("the normalisation table is not UTF-8") from error
    count, starts = len(units), {0, *(i + 1 for i, byte in enumerate(texts) if byte == 0)}
    for index, unit in enumerate(units):
        if unit >> 31:
            continue
        target = index ^ ((unit >> 10) << ((unit & 512) >> 6))
        if target >= count:
            raise _Damaged("the normalisation table points outside itself")
        if unit & 256:
            value = units[target] & 0x7FFF_FFFF
            if value not in starts or value >= len(texts):
                raise _Damaged("the normalisation table points at no replacement")


# ---- the same model on the tokenizers library -----------------------------------------------------------------------


def build_sentencepiece(model: Pieces) -> Tokenizer:
    """A tokenizer with the ids of ``model``. Control pieces become special tokens, user-defined ones added tokens."""
    names = [piece.text for piece in model.pieces]
    if len(set(names)) != len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise ModelError(f"The vocabulary has {twice!r} twice.", "It may be damaged; fetch it again.")
    if not 0 <= model.unk_id < len(names):
        raise ModelError(f"The unknown token is {model.unk_id} of {len(names)}.", "It may be damaged; fetch it again.")
    try:
        backend = Tokenizer(_unigram(model) if model.model_type == UNIGRAM else _bpe(model, names))
    except Exception as error:  # the library raises bare Exception for whatever it does not like
        raise ModelError(f"The vocabulary cannot be used: {error}", "It may be damaged; fetch it again.") from error
    backend.normalizer = normalizer_for(model)  # pyright: ignore[reportAttributeAccessIssue]
    steps = [decoders.Replace(SPACE, " "), *([decoders.ByteFallback()] if model.byte_fallback else []), decoders.Fuse()]
    if model.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    for kinds, is_special in (((CONTROL, UNKNOWN), True), ((USER_DEFINED,), False)):
        tokens = [
            AddedToken(piece.text, special=is_special, normalized=False)
            for piece in model.pieces
            if piece.kind in kinds
        ]
        (backend.add_special_tokens if is_special else backend.add_tokens)(tokens)
    return backend


def normalizer_for(model: Pieces) -> normalizers.Normalizer:
    """What SentencePiece does to a text first: its table, spaces, and the marks for them."""
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _unigram(model: Pieces) -> models.Unigram:
    """Bytes and unused pieces get a score so low that text spelling their names is cut into letters instead."""
    normal = [piece.score for piece in model.pieces if piece.kind == NORMAL]
    unlikely = min(normal, default=0.0) - 10_000.0
    scores = [
        (piece.text, unlikely if piece.kind in (BYTE, UNUSED) else piece.score if piece.kind == NORMAL else 0.0)
        for piece in model.pieces
    ]
    return models.Unigram(scores, unk_id=model.unk_id, byte_fallback=model.byte_fallback)


def _bpe(model: Pieces, names: Sequence[str]) -> models.BPE:
    """SentencePiece merges whatever pair gives the piece with the highest score; here every such pair is a merge."""
    ids = {name: index for index, name in enumerate(names)}
    parts = {piece.text for piece in model.pieces if piece.kind in (NORMAL, USER_DEFINED)}
    merges: list[tuple[float, int, int, int]] = []
    for index, piece in enumerate(model.pieces):
        if piece.kind not in (NORMAL, USER_DEFINED) or model.model_type == CHAR:
            continue
        for cut in range(1, len(piece.text)):
            left, right = piece.text[:cut], piece.text[cut:]
            if left in parts and right in parts:
                merges.append((-piece.score, index, ids[left], ids[right]))
    merges.sort()
    return models.BPE(
        ids,
        [(names[left], names[right]) for _, _, left, right in merges],
        unk_token=names[model.unk_id],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )
