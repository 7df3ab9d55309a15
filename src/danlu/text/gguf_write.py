"""A tokenizer as GGUF metadata (``tokenizer.ggml.*``): the inverse of text/gguf. Knows metadata as plain values.

Byte-level BPE needs a name for how it cuts text first (``pre``): the known cuts are tried on a text that tells them
apart. Other BPE becomes SentencePiece's, its merges told by scores: the earlier a merge, the higher.
"""

from __future__ import annotations

import json
import re
from typing import Any

from danlu.core.errors import ModelError
from danlu.text.chat import ChatFormat
from danlu.text.gguf import PRE_TOKENIZERS, WHOLE_FIRST
from danlu.text.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from danlu.text.tokenizer import TextTokenizer

_PROBE = (
    "I'll say: WE'RE 3 times, 12345 \u00e9t\u00e9s!  \n\n\tx = foo_bar(1.5)//2;\r\n \u4f60\u597d\uff0c\u4e16\u754c "
    "\u3053\u3093 HTTPServer camelCase\u2019s \u00bd \U0001f457 a\u0301b end?! \n  #tag"
)
_PREFERRED = ("gpt-2", "smollm", "llama-bpe", "qwen2", "gpt-4o", "tekken", "deepseek-v3")
"""Names for cuts that have several."""
_ROLES = {
    "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding", "mask_token": "mask",
    "cls_token": "cls", "sep_token": "seperator",
}  # fmt: skip
_BYTE_NAME = re.compile(r"<0x[0-9A-F]{2}>")


def gguf_tokenizer(chat: ChatFormat, vocabulary_size: int) -> dict[str, Any]:
    """Metadata of a tokenizer and its template, filled up to the model's ``vocabulary_size`` with unused tokens.

    Raises ModelError when GGUF cannot say how the tokenizer cuts text.
    """
    tokenizer = chat.tokenizer
    if tokenizer.vocabulary_size > vocabulary_size:
        raise ModelError(
            f"The tokenizer has {tokenizer.vocabulary_size} tokens, the model {vocabulary_size}.",
            "Are all files of one model?",
        )
    whole: dict[str, Any] = json.loads(tokenizer.backend.to_str())
    model = whole["model"]
    if model["type"] != "BPE":
        raise ModelError(f"A {model['type']} tokenizer cannot be written as GGUF.", "Byte-level and other BPE can.")
    is_byte_level = "ByteLevel" in json.dumps(whole["pre_tokenizer"])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    tokens, types = _tokens(tokenizer, whole["added_tokens"], vocabulary_size, has_bytes=not is_byte_level)
    metadata: dict[str, Any] = {"tokenizer.ggml.model": "gpt2" if is_byte_level else "llama"}
    if is_byte_level:
        metadata["tokenizer.ggml.pre"] = _cut(tokenizer, whole)
    metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    if is_byte_level:
        metadata["tokenizer.ggml.merges"] = merges
    else:
        ranks: dict[str, int] = {}
        for rank, merge in enumerate(merges):
            ranks.setdefault(merge.replace(" ", "", 1), rank)
        metadata["tokenizer.ggml.scores"] = [-float(ranks.get(token, len(merges))) for token in tokens]
        metadata["tokenizer.ggml.add_space_prefix"] = tokenizer.prefix != "never"
    return metadata | _special(chat)


def _tokens(
    tokenizer: TextTokenizer, added: list[dict[str, Any]], size: int, *, has_bytes: bool
) -> tuple[list[str], list[int]]:
    """Every id's token and kind; ids of none are unused."""
    tokens, types = [f"[PAD{index}]" for index in range(size)], [UNUSED] * size
    for token, index in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        tokens[index] = token
        types[index] = BYTE if has_bytes and _BYTE_NAME.fullmatch(token) else NORMAL
    for entry in added:
        types[entry["id"]] = CONTROL if entry["special"] else USER_DEFINED
    if has_bytes and tokenizer.unk_id is not None:
        types[tokenizer.unk_id] = UNKNOWN
    return tokens, types


def _special(chat: ChatFormat) -> dict[str, Any]:
    tokenizer = chat.tokenizer
    metadata: dict[str, Any] = {}
    for role, word in _ROLES.items():
        if role in tokenizer.roles:
            metadata[f"tokenizer.ggml.{word}_token_id"] = tokenizer.backend.token_to_id(tokenizer.roles[role])
    if len(tokenizer.end_tokens) > 1:
        metadata["tokenizer.ggml.eot_token_id"] = tokenizer.backend.token_to_id(tokenizer.end_tokens[1])
    framed, _ = tokenizer.encode_with_specials("a")
    metadata["tokenizer.ggml.add_bos_token"] = tokenizer.begin_id is not None and framed[0] == tokenizer.begin_id
    metadata["tokenizer.ggml.add_eos_token"] = framed[-1] in tokenizer.end_ids
    if chat.source is not None:
        metadata["tokenizer.chat_template"] = chat.source
    return metadata


def _cut(tokenizer: TextTokenizer, whole: dict[str, Any]) -> str:
    """The name of the known cut that does what this tokenizer does."""
    ours = tokenizer.backend.pre_tokenizer.pre_tokenize_str(_PROBE)  # pyright: ignore[reportOptionalMemberAccess]
    takes_whole = bool(whole["model"].get("ignore_merges"))
    normalizer = (whole["normalizer"] or {}).get("type")
    for name in (*_PREFERRED, *PRE_TOKENIZERS):
        is_same = PRE_TOKENIZERS[name]().pre_tokenize_str(_PROBE) == ours and takes_whole == (name in WHOLE_FIRST)
        if is_same and normalizer in (None, "NFC" if name == "qwen2" else None):
            return name
    raise ModelError(
        "No GGUF reader knows how this tokenizer cuts text before its merges.",
        f"Known cuts: {', '.join(PRE_TOKENIZERS)}; export from a model with one of these.",
    )
