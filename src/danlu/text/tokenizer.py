"""Text to ids and back, on the ``tokenizers`` library.

Special tokens are never made from ordinary text: "<|im_end|>" typed by a user becomes plain characters. Only
``text/chat`` places special tokens, from the model's own template. Knows nothing of messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from danlu.core.errors import ModelError

GGUF_NORMAL_TOKEN = 1  # token types of the GGUF specification: 1 normal, 3 control, 4 user defined, 6 byte

_DIGITS = pre_tokenizers.Digits(individual_digits=True)
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_PATTERN = _LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


class TextTokenizer:
    """A tokenizer with its special tokens. ``end_ids`` end an answer."""

    def __init__(self, tokenizer: Tokenizer, *, end_tokens: Sequence[str], begin_token: str | None = None) -> None:
        self.backend = tokenizer
        self.backend.encode_special_tokens = True  # special tokens in ordinary text stay ordinary text
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = {token.content: index for index, token in added.items() if token.special}
        self.begin_id = None if begin_token is None else self._id_of(begin_token)
        self.end_tokens = tuple(end_tokens)
        self.end_ids = frozenset(self._id_of(token) for token in end_tokens)

    def _id_of(self, token: str) -> int:
        index = self.backend.token_to_id(token)
        if index is None:
            raise ModelError(f"The tokenizer has no token {token!r}.", "Is the tokenizer from the same model?")
        return index

    @property
    def vocabulary_size(self) -> int:
        """Ids the tokenizer can give."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text, no special tokens added or recognised."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out, broken UTF-8 becomes U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json."""
        self.backend.encode_special_tokens = False
        self.backend.save(str(folder / "tokenizer.json"))
        self.backend.encode_special_tokens = True


class TextStream:
    """Ids arrive one by one; text comes out as soon as it is certain. The pieces join to ``decode`` of all ids."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []  # the newest ids, and some before them that keep spacing right
        self._num_whole = 0  # ids of the window that end with a whole character
        self._num_shown = 0  # characters of the window's text that are out

    def push(self, token_id: int) -> str:
        """The text that this id completes; "" while a character is incomplete."""
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        if text.endswith("\ufffd"):  # only this last character may still change
            piece = text[self._num_shown : -1]
            self._num_shown += len(piece)
            return piece
        piece = text[self._num_shown :]
        self._window = self._window[self._num_whole :]
        self._num_whole = len(self._window)
        self._num_shown = len(self._tokenizer.decode(self._window))
        return piece

    def finish(self) -> str:
        """What is left when the answer is over."""
        piece = self._tokenizer.decode(self._window)[self._num_shown :]
        self._num_shown += len(piece)
        return piece


def load_tokenizer(folder: Path, config: Mapping[str, Any]) -> TextTokenizer:
    """From a Hugging Face folder: tokenizer.json, end tokens from its tokenizer_config.json (``config``)."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no tokenizer.json.", "Copy it from the model's own repository.")
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every broken file
        raise ModelError(f"{path} is not a tokenizer: {error}", "It may be damaged; fetch it again.") from error
    end = config.get("eos_token")
    ends = [end["content"] if isinstance(end, dict) else end] if end else []
    begin = config.get("bos_token")
    begin = begin["content"] if isinstance(begin, dict) else begin
    return TextTokenizer(backend, end_tokens=ends, begin_token=begin)


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> TextTokenizer:
    """A byte-level BPE tokenizer out of GGUF metadata (``tokenizer.ggml.*``)."""
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    splitters = {
        "smollm": lambda: pre_tokenizers.Sequence([_DIGITS, _GPT2]),
        "gpt-2": lambda: _GPT2,
        "default": lambda: _GPT2,
        "llama-bpe": lambda: _split(_LLAMA3_PATTERN),
        "qwen2": lambda: _split(_QWEN2_PATTERN),
    }
    if kind != "gpt2" or pre not in splitters:
        raise ModelError(
            f"The GGUF file's tokenizer is {kind!r} with pre-tokenizer {pre!r}.",
            f"Byte-level BPE (gpt2) with one of {', '.join(sorted(splitters))} can be read; "
            "or give a Hugging Face folder of the same model.",
        )
    missing = sorted({f"tokenizer.ggml.{x}" for x in ("tokens", "merges", "eos_token_id")} - metadata.keys())
    if missing:
        raise ModelError(f"The GGUF metadata lacks {', '.join(missing)}.", "The file may be damaged; fetch it again.")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: list[int] = metadata.get("tokenizer.ggml.token_type", [GGUF_NORMAL_TOKEN] * len(tokens))
    if len(types) != len(tokens):
        raise ModelError(
            f"The GGUF file has {len(tokens)} tokens but {len(types)} token types.", "It is damaged; fetch it again."
        )
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))  # pyright: ignore[reportArgumentType]
    backend.pre_tokenizer = splitters[pre]()
    backend.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind != GGUF_NORMAL_TOKEN]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    begin = metadata.get("tokenizer.ggml.bos_token_id")
    return TextTokenizer(
        backend,
        end_tokens=[tokens[metadata["tokenizer.ggml.eos_token_id"]]],
        begin_token=None if begin is None else tokens[begin],
    )
