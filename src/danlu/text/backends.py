"""What the ``tokenizers`` library leaves open: names of special tokens in typed text, spaces in front, lone bytes.

Works on the library's own tokenizers and on their JSON form. Knows nothing of folders or messages.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Container
from typing import Any, Literal, cast

from tokenizers import Tokenizer, models

from danlu.text.sentencepiece import SPACE

_BYTE_NAME = re.compile("<0x[0-9A-Fa-f]{2}>")

Prefix = Literal["always", "first", "never"]
"""Where a tokenizer puts a space of its own: before every text, before the first of several, or nowhere."""

# ---- what keeps typed text from becoming special tokens --------------------------------------------------------------


def without_special_names(tokenizer: Tokenizer, names: Collection[str]) -> Tokenizer:
    """A tokenizer with the same ids in which no text spells one of ``names``, those of special tokens first of all.

    The library does not look for special tokens in ordinary text, but its models know their names too: a unigram model
    takes "</s>" as one piece, a WordPiece model "[MASK]" if nothing cuts it. Where that can happen, a copy is made in
    which special tokens have names drawn anew, which nobody can type. Otherwise the tokenizer itself is returned.
    """
    model = tokenizer.model
    inside = {name for name in names if model.token_to_id(name) is not None}
    if not inside:
        return tokenizer
    whole = cast("dict[str, Any]", json.loads(tokenizer.to_str()))
    body = whole["model"]
    if isinstance(model, models.BPE):
        merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in body["merges"]]
        made = {left + right for left, right in merges}
        if not body.get("ignore_merges") and not inside & made and all(len(name) > 1 for name in inside):
            return tokenizer
        body["merges"] = [pair for pair in merges if not {"".join(pair), *pair} & inside]
    new_names = {name: secrets.token_hex(20) for name in sorted(names)}
    if isinstance(body["vocab"], list):
        body["vocab"] = [[new_names.get(name, name), score] for name, score in body["vocab"]]
    else:
        body["vocab"] = {new_names.get(name, name): index for name, index in body["vocab"].items()}
    if body.get("unk_token") in new_names:
        body["unk_token"] = new_names[body["unk_token"]]
    for token in whole["added_tokens"]:
        token["content"] = new_names.get(token["content"], token["content"])
    copy = Tokenizer.from_str(json.dumps(whole))
    assert all(copy.token_to_id(new_names[name]) == tokenizer.token_to_id(name) for name in names)
    copy.encode_special_tokens = True
    return copy


# ---- spaces that tokenizers put in front -----------------------------------------------------------------------------


def _state(part: Any) -> dict[str, Any]:
    """A normalizer, pre-tokenizer or decoder as the JSON that tokenizer.json has for it."""
    return {} if part is None else json.loads(part.__getstate__())


def _steps(state: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The parts of a sequence, or the one part there is."""
    if state.get("type") == "Sequence":
        return [step for part in state[key] for step in _steps(part, key)]
    return [state] if state else []


def prefix_of(tokenizer: Tokenizer) -> Prefix:
    """Where ``tokenizer`` puts a space of its own."""
    if any(step["type"] == "Prepend" for step in _steps(_state(tokenizer.normalizer), "normalizers")):
        return "always"
    for step in _steps(_state(tokenizer.pre_tokenizer), "pretokenizers"):
        if step["type"] == "Metaspace":
            return step.get("prepend_scheme", "always")
        if step.get("add_prefix_space"):
            return "always"
    return "never"


def without_prefix(plain: Tokenizer) -> Tokenizer:
    """The same model, its vocabulary shared, that puts no space in front."""
    normalizer, pre_tokenizer = _state(plain.normalizer), _state(plain.pre_tokenizer)
    for step in _steps(normalizer, "normalizers"):
        if step["type"] == "Prepend":
            step["prepend"] = ""
    for step in _steps(pre_tokenizer, "pretokenizers"):
        if step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
        elif "add_prefix_space" in step:
            step["add_prefix_space"] = False
    shell = json.loads(Tokenizer(models.WordLevel({}, unk_token="")).to_str())
    shell |= {"normalizer": normalizer or None, "pre_tokenizer": pre_tokenizer or None}
    parts = Tokenizer.from_str(json.dumps(shell))
    rest = Tokenizer(plain.model)
    for _, token in sorted(plain.get_added_tokens_decoder().items()):
        (rest.add_special_tokens if token.special else rest.add_tokens)([token])
    rest.normalizer, rest.pre_tokenizer = parts.normalizer, parts.pre_tokenizer
    rest.encode_special_tokens = True
    assert rest.get_vocab_size() == plain.get_vocab_size()
    return rest


def decoder_steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """What the library does, in turn, to make text of tokens."""
    return _steps(_state(tokenizer.decoder), "decoders")


def fallback_bytes(tokenizer: Tokenizer, special: Container[str]) -> tuple[dict[int, bytes], bool] | None:
    """Of tokenizers that fall back to bytes: the bytes of every ordinary id, and whether texts lose a space in front.

    The library's own decoder marks every byte of a run as broken when one is. With these, only what cannot be read is
    marked, as for other tokenizers, and a character is readable as soon as its last byte is there.
    """
    steps = decoder_steps(tokenizer)
    if not any(step["type"] == "ByteFallback" for step in steps):
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    pieces = {index: _piece_bytes(token) for token, index in vocabulary.items() if token not in special}
    return pieces, any(step["type"] == "Strip" and step["start"] for step in steps)


def _piece_bytes(token: str) -> bytes:
    """``<0x0A>`` is a byte; everything else is text with its spaces marked."""
    if _BYTE_NAME.fullmatch(token):
        return bytes.fromhex(token[3:5])
    return token.replace(SPACE, " ").encode()
