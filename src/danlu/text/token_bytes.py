"""What every token of a tokenizer stands for, in bytes: what joins to the UTF-8 of an answer.

Knows nothing of grammars.
"""

from __future__ import annotations

from tokenizers import Tokenizer

from danlu.text.backends import decoder_steps, fallback_bytes
from danlu.text.sentencepiece import SPACE
from danlu.text.tokenizer import TextTokenizer


def token_bytes(tokenizer: TextTokenizer) -> list[bytes] | None:
    """By id; empty for special tokens and for ids without a token. None when the bytes of a token depend on its
    neighbours, as they do for WordPiece."""
    backend, special = tokenizer.backend, tokenizer.special_ids
    vocabulary = backend.get_vocab(with_added_tokens=True)
    pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
    fallback = fallback_bytes(backend, special)
    known = _by_bytes(backend, vocabulary) if fallback is None else fallback[0]
    if known is None:
        return None
    for token, index in vocabulary.items():
        if token not in special:
            pieces[index] = known[index]
    return pieces


def _by_bytes(backend: Tokenizer, vocabulary: dict[str, int]) -> dict[int, bytes] | None:
    steps = {step["type"]: step for step in decoder_steps(backend)}
    if "ByteLevel" in steps:
        table = _byte_of_character()
        return {
            index: bytes(table[c] for c in token) if all(c in table for c in token) else token.encode()
            for token, index in vocabulary.items()
        }
    if "Metaspace" in steps:
        space = steps["Metaspace"].get("replacement", SPACE)
        return {index: token.replace(space, " ").encode() for token, index in vocabulary.items()}
    if "BPEDecoder" in steps:
        end = steps["BPEDecoder"]["suffix"]
        return {
            index: (token.removesuffix(end) + " " if end and token.endswith(end) else token).encode()
            for token, index in vocabulary.items()
        }
    return None


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes each byte as one visible character: itself, or one from U+0100 on (Radford et al. 2019)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in visible}
    hidden = [byte for byte in range(256) if byte not in visible]
    return table | {chr(256 + place): byte for place, byte in enumerate(hidden)}
