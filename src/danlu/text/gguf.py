"""Tokenizers out of GGUF metadata (``tokenizer.ggml.*``): byte-level BPE, SentencePiece's two kinds, and WordPiece.

A byte-level vocabulary names how its text is cut first (``pre``); each cut here is the one of the model family that the
name stands for. Knows metadata as plain values, nothing of the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from danlu.core.errors import ModelError
from danlu.text.sentencepiece import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNIGRAM,
    UNKNOWN,
    USER_DEFINED,
    Piece,
    Pieces,
    build_sentencepiece,
    check_charsmap,
)

_DIGITS = pre_tokenizers.Digits(individual_digits=True)
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?:END)?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?:END)?"
_GPT4O = (
    _CASED.replace("END", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)")
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = _CASED.replace("(?:END)?", "") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)


def _split(*patterns: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    """Cut at each pattern in turn, then turn bytes into characters."""
    return lambda: pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _digits_first() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([_DIGITS, _GPT2])


PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    **dict.fromkeys(("default", "gpt-2", "mpt", "olmo", "phi-2", "jina-en", "roberta-bpe"), lambda: _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), _digits_first),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe"), _split(_LLAMA3)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen"), _split(_QWEN2)),
    **dict.fromkeys(("gpt-4o", "llama4"), _split(_GPT4O)),
    "tekken": _split(_TEKKEN),
    "deepseek-v3": _split(*_DEEPSEEK3),
}
"""The ``pre`` names that can be read."""
WHOLE_FIRST = frozenset(("llama-bpe", "llama3", "llama-v3", "tekken", "gpt-4o", "llama4"))
"""Families that take a piece standing in the vocabulary as it is, before any merge."""


def build_from_gguf(metadata: Mapping[str, Any]) -> tuple[Tokenizer, dict[str, str]]:
    """A tokenizer and the names of its special tokens by role; ModelError when it cannot be read."""
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece, "t5": _sentencepiece, "bert": _wordpiece}
    if kind not in builders or (kind == "gpt2" and pre not in PRE_TOKENIZERS):
        raise ModelError(
            f"The GGUF file's tokenizer is {kind!r} with pre-tokenizer {pre!r}.",
            f"Byte-level BPE (gpt2) with one of {', '.join(sorted(PRE_TOKENIZERS))}, llama, t5 and bert can be read; "
            "or give a Hugging Face folder of the same model.",
        )
    needed = {"gpt2": ("tokens", "merges", "eos_token_id"), "bert": ("tokens",)}.get(kind, ("tokens", "scores"))
    missing = sorted({f"tokenizer.ggml.{x}" for x in needed} - metadata.keys())
    if missing:
        raise ModelError(f"The GGUF metadata lacks {', '.join(missing)}.", "The file may be damaged; fetch it again.")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: Sequence[int] = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise ModelError(
            f"The GGUF file has {len(tokens)} tokens but {len(types)} token types.", "It is damaged; fetch it again."
        )
    roles = {
        "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding", "mask_token": "mask",
        "cls_token": "cls", "sep_token": "seperator",
    }  # fmt: skip
    names: dict[str, str] = {}
    for role, word in roles.items():
        index = metadata.get(f"tokenizer.ggml.{word}_token_id")
        if index is None:
            continue
        if not 0 <= index < len(tokens):
            raise ModelError(
                f"The GGUF file's {role} is {index} of {len(tokens)} tokens.", "It is damaged; fetch it again."
            )
        names[role] = tokens[index]
    return builders[kind](metadata, tokens, types, names), names


def _byte_level(
    metadata: Mapping[str, Any], tokens: list[str], types: Sequence[int], names: Mapping[str, str]
) -> Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    ids = {token: index for index, token in enumerate(tokens)}
    try:
        backend = Tokenizer(models.BPE(ids, merges, ignore_merges=pre in WHOLE_FIRST))  # pyright: ignore[reportArgumentType]
    except Exception as error:  # the library raises bare Exception for whatever it does not like
        raise ModelError(f"The GGUF file's vocabulary cannot be used: {error}", "It may be damaged.") from error
    backend.pre_tokenizer = PRE_TOKENIZERS[pre]()  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    _add(backend, tokens, types)
    return backend


def _add(backend: Tokenizer, tokens: list[str], types: Sequence[int]) -> None:
    """Control tokens are special; user-defined ones are found in any text."""
    special = [token for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, UNKNOWN)]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    own = [token for token, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED]
    backend.add_tokens([AddedToken(token, normalized=False) for token in own])


def _sentencepiece(
    metadata: Mapping[str, Any], tokens: list[str], types: Sequence[int], names: Mapping[str, str]
) -> Tokenizer:
    """``llama`` is BPE with scores, ``t5`` a unigram model."""
    scores: Sequence[float] = metadata["tokenizer.ggml.scores"]
    if len(scores) != len(tokens) or not all(map(math.isfinite, scores)):
        raise ModelError(
            f"The GGUF file has {len(tokens)} tokens and {len(scores)} scores.", "It is damaged; fetch it again."
        )
    is_unigram = metadata["tokenizer.ggml.model"] == "t5"
    unknown = [index for index, kind in enumerate(types) if kind == UNKNOWN]
    charsmap = bytes(metadata.get("tokenizer.ggml.precompiled_charsmap", b""))
    model = Pieces(
        pieces=tuple(Piece(text=t, score=s, kind=k) for t, s, k in zip(tokens, scores, types, strict=True)),
        model_type=UNIGRAM if is_unigram else BPE,
        byte_fallback=BYTE in types,
        unk_id=unknown[0] if unknown else tokens.index(names["unk_token"]) if "unk_token" in names else 0,
        add_dummy_prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
        remove_extra_whitespaces=bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", is_unigram)),
        charsmap=check_charsmap(charsmap),
    )
    return build_sentencepiece(model)


def _wordpiece(
    metadata: Mapping[str, Any], tokens: list[str], types: Sequence[int], names: Mapping[str, str]
) -> Tokenizer:
    """GGUF marks the pieces that begin a word; BERT marks those that do not."""
    ids: dict[str, int] = {}
    for index, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        is_plain = kind != NORMAL or (token.startswith("[") and token.endswith("]") and len(token) > 2)
        name = token if is_plain else token[1:] if token.startswith(SPACE) else f"##{token}"
        ids[name] = index
    unknown = names.get("unk_token", "[UNK]")
    if len(ids) != len(tokens) or unknown not in ids:
        raise ModelError(f"The GGUF file's {len(tokens)} tokens make {len(ids)} pieces.", "It is no BERT vocabulary.")
    backend = Tokenizer(models.WordPiece(ids, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)  # pyright: ignore[reportAttributeAccessIssue]
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.WordPiece()  # pyright: ignore[reportAttributeAccessIssue]
    _add(backend, tokens, types)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in sorted(names.values())])
    cls = names.get("cls_token") or names.get("bos_token") or "[CLS]"
    sep = names.get("sep_token") or names.get("eos_token") or "[SEP]"
    if cls in ids and sep in ids:
        backend.post_processor = processors.BertProcessing((sep, ids[sep]), (cls, ids[cls]))  # pyright: ignore[reportAttributeAccessIssue]
    return backend
