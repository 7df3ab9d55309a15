"""Text to ids and back, on the ``tokenizers`` library.

Special tokens are never made from ordinary text: "<|im_end|>" typed by a user becomes plain characters. Only
``text/chat`` places special tokens, from the model's own template, and ``encode_with_specials``, from the tokenizer's
own frame around a text or pair. Knows nothing of messages.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from danlu.core.errors import ModelError
from danlu.core.files import read_json, read_json_object
from danlu.text.backends import fallback_bytes, prefix_of, without_prefix, without_special_names
from danlu.text.folders import build_from_files, build_marian, has_marian, token_name
from danlu.text.gguf import build_from_gguf
from danlu.text.sentencepiece import NORMAL

GGUF_NORMAL_TOKEN = NORMAL


class TextTokenizer:
    """A tokenizer with its special tokens. ``end_ids`` end an answer."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        end_tokens: Sequence[str],
        begin_token: str | None = None,
        roles: Mapping[str, str] | None = None,
        target: TextTokenizer | None = None,
        hidden: Collection[str] = (),
    ) -> None:
        """``roles`` names the other special tokens: pad_token, mask_token, unk_token, cls_token, sep_token.

        ``hidden`` are pieces that text never becomes though they have ids.
        """
        self.backend = tokenizer
        self.backend.encode_special_tokens = True  # special tokens in ordinary text stay ordinary text
        self.backend.no_padding()
        self.backend.no_truncation()
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = {token.content: index for index, token in added.items() if token.special}
        self.begin_id = None if begin_token is None else self._id_of(begin_token)
        self.end_tokens = tuple(end_tokens)
        self.end_ids = frozenset(self._id_of(token) for token in end_tokens)
        self.roles = _roles(tokenizer, self.special_ids, roles or {}, begin_token, end_tokens)
        self.target = target or self
        """How a translation model writes its answers; the same tokenizer for every other model."""
        self._plain = without_special_names(tokenizer, {*self.special_ids, *hidden})
        self.prefix = prefix_of(tokenizer)

    def _id_of(self, token: str) -> int:
        index = self.backend.token_to_id(token)
        if index is None:
            raise ModelError(f"The tokenizer has no token {token!r}.", "Is the tokenizer from the same model?")
        return index

    @property
    def vocabulary_size(self) -> int:
        """Ids the tokenizer can give."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def pad_id(self) -> int | None:
        """What fills short rows of a batch."""
        return self._role_id("pad_token")

    @property
    def mask_id(self) -> int | None:
        """What stands for a hidden token."""
        return self._role_id("mask_token")

    @property
    def unk_id(self) -> int | None:
        """What stands for text that cannot be written otherwise; the one special id that text can become."""
        return self._role_id("unk_token")

    def _role_id(self, role: str) -> int | None:
        name = self.roles.get(role)
        return None if name is None else self.backend.token_to_id(name)

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text, no special tokens added or recognised."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode_rest(self, text: str) -> list[int]:
        """Ids of text that continues other text: without the space that some tokenizers put in front."""
        return self._rest.encode(text, add_special_tokens=False).ids

    def encode_with_specials(
        self, text: str, pair: str | None = None, *, max_tokens: int | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids and type ids of a text or a pair in the model's own frame, for example ``[CLS] a [SEP] b [SEP]``.

        With ``max_tokens`` the longer of both loses tokens at its end until all fit.
        """
        first = self._plain.encode(text, add_special_tokens=False)
        second = None if pair is None else self._plain.encode(pair, add_special_tokens=False)
        encoding = self._framed(first, second, max_tokens)
        return encoding.ids, encoding.type_ids

    def encode_framed(
        self, texts: Sequence[str | tuple[str, str]], *, max_tokens: int | None = None
    ) -> list[Encoding]:  # fmt: skip
        """``encode_with_specials`` of many texts and pairs at once, with offsets.

        Python's lock is free meanwhile, so other threads go on.
        """
        begins = [text if isinstance(text, str) else text[0] for text in texts]
        rests = [text[1] for text in texts if not isinstance(text, str)]
        firsts = self._plain.encode_batch(begins, add_special_tokens=False)
        seconds = iter(self._plain.encode_batch(rests, add_special_tokens=False))
        pairs = (None if isinstance(text, str) else next(seconds) for text in texts)
        return [self._framed(first, second, max_tokens) for first, second in zip(firsts, pairs, strict=True)]

    def encode_with_offsets(
        self, text: str, *, with_specials: bool = False, max_tokens: int | None = None
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and for each the characters of ``text`` it stands for as (start, end); (0, 0) for special tokens."""
        encoding = self._plain.encode(text, add_special_tokens=False)
        if with_specials or max_tokens is not None:
            encoding = self._framed(encoding, None, max_tokens, with_specials=with_specials)
        return encoding.ids, encoding.offsets

    def _framed(
        self, first: Encoding, second: Encoding | None, max_tokens: int | None, *, with_specials: bool = True
    ) -> Encoding:
        if max_tokens is not None:
            room = max_tokens
            if with_specials:
                room -= self._plain.num_special_tokens_to_add(second is not None)
            if room < 0:
                raise ModelError(f"max_tokens is {max_tokens}.", "The special tokens alone are more.")
            one, other = _share(room, len(first), 0 if second is None else len(second))
            first.truncate(one)
            if second is not None:
                second.truncate(other)
        return self._plain.post_process(first, second, add_special_tokens=with_specials)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out, broken UTF-8 becomes U+FFFD."""
        if self._bytes is None:
            return self.backend.decode(list(ids), skip_special_tokens=True)
        pieces, begins_with_space = self._bytes
        text = b"".join(pieces.get(index, b"") for index in ids).decode("utf-8", errors="replace")
        return text[1:] if begins_with_space and text.startswith(" ") else text

    def save(self, folder: Path) -> None:
        """Write tokenizer.json."""
        self.backend.encode_special_tokens = False
        self.backend.save(str(folder / "tokenizer.json"))
        self.backend.encode_special_tokens = True

    @functools.cached_property
    def _rest(self) -> Tokenizer:
        """The same model without a space in front; it shares the vocabulary."""
        return self._plain if self.prefix == "never" else without_prefix(self._plain)

    @functools.cached_property
    def _bytes(self) -> tuple[dict[int, bytes], bool] | None:
        """Of tokenizers that fall back to bytes: the bytes of every id, and whether texts lose a space in front.

        The library's own decoder marks every byte of a run as broken when one is; here, as for other tokenizers, only
        what cannot be read is marked, and a character is readable as soon as its last byte is there.
        """
        return fallback_bytes(self.backend, self.special_ids)


def _roles(
    tokenizer: Tokenizer,
    special_ids: Mapping[str, int],
    given: Mapping[str, str],
    begin_token: str | None,
    end_tokens: Sequence[str],
) -> dict[str, str]:
    """Special tokens by role: what is given, else what the usual names and the model itself say."""
    usual = {"pad_token": ("[PAD]", "<pad>"), "mask_token": ("[MASK]", "<mask>"), "unk_token": ("[UNK]", "<unk>")}
    roles = {role: name for role, name in given.items() if tokenizer.token_to_id(name) is not None}
    unknown = getattr(tokenizer.model, "unk_token", None)
    if isinstance(unknown, str) and tokenizer.token_to_id(unknown) is not None:
        roles.setdefault("unk_token", unknown)
    for role, names in usual.items():
        found = [name for name in names if name in special_ids]
        if found:
            roles.setdefault(role, found[0])
    if begin_token is not None:
        roles["bos_token"] = begin_token
    if end_tokens:
        roles["eos_token"] = end_tokens[0]
    return roles


def _share(room: int, first: int, second: int) -> tuple[int, int]:
    """Lengths of two texts after the longer one has lost tokens until both fit into ``room``."""
    if first + second <= room:
        return first, second
    half = room // 2
    if first <= half:
        return first, room - first
    if second <= half:
        return room - second, second
    return room - half, half


class TextStream:
    """Ids arrive one by one; text comes out as soon as it is certain. The pieces join to ``decode`` of all ids."""

    def __init__(self, tokenizer: TextTokenizer, shown: Collection[str] = ()) -> None:
        """``shown`` are special tokens whose names are to be seen, such as those around calls of tools."""
        self._tokenizer = tokenizer
        self._shown = {tokenizer.special_ids[name]: name for name in shown if name in tokenizer.special_ids}
        self._left_out = frozenset(tokenizer.special_ids.values())
        self._num_ids = tokenizer.vocabulary_size
        self._window: list[int] = []  # the newest ids, and some before them that keep spacing right
        self._num_whole = 0  # ids of the window that end with a whole character
        self._num_shown = 0  # characters of the window's text that are out

    def push(self, token_id: int) -> str:
        """The text that this id completes; "" while a character is incomplete."""
        if token_id in self._shown:
            piece = self.finish() + self._shown[token_id]
            self._window, self._num_whole, self._num_shown = [], 0, 0
            return piece
        if token_id in self._left_out or token_id >= self._num_ids:  # models pad their vocabularies
            return ""
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


_ROLES = ("pad_token", "mask_token", "unk_token", "cls_token", "sep_token")


def load_tokenizer(folder: Path, config: Mapping[str, Any]) -> TextTokenizer:
    """From a Hugging Face folder: tokenizer.json, or the files older libraries wrote (text/folders).

    ``config`` is its tokenizer_config.json; special_tokens_map.json fills what it leaves out, and
    generation_config.json may name more tokens that end an answer.
    """
    extra = folder / "special_tokens_map.json"
    if extra.is_file():
        config = {**read_json_object(extra), **config}
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            backend = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every broken file
            raise ModelError(f"{path} is not a tokenizer: {error}", "It may be damaged; fetch it again.") from error
        names = {role: name for role in (*_ROLES, "bos_token", "eos_token") if (name := token_name(config, role))}
        return _with_roles(backend, names, folder)
    if has_marian(folder):
        source, target, names = build_marian(folder, config)
        writer = _with_roles(target[0], names, folder, hidden=target[1])
        return _with_roles(source[0], names, folder, hidden=source[1], target=writer)
    built = build_from_files(folder, config)
    if built is None:
        raise ModelError(f"{folder} has no tokenizer.json.", "Copy it from the model's own repository.")
    return _with_roles(*built, folder)


def _with_roles(
    backend: Tokenizer,
    names: Mapping[str, str],
    folder: Path,
    *,
    target: TextTokenizer | None = None,
    hidden: Collection[str] = (),
) -> TextTokenizer:
    first = names.get("eos_token")
    ends = [*([first] if first else []), *(name for name in _more_ends(backend, folder) if name != first)]
    roles = {role: name for role, name in names.items() if role in _ROLES}
    begin = names.get("bos_token")
    return TextTokenizer(
        backend, end_tokens=ends, begin_token=begin, roles=roles, target=target, hidden=hidden
    )  # fmt: skip


def _more_ends(backend: Tokenizer, folder: Path) -> list[str]:
    """Special tokens that generation_config.json lists as ends, when it lists several."""
    path = folder / "generation_config.json"
    config: Any = read_json(path) if path.is_file() else {}
    listed = config.get("eos_token_id") if isinstance(config, dict) else None
    added = backend.get_added_tokens_decoder()
    return (
        [added[i].content for i in listed if type(i) is int and i in added and added[i].special]
        if isinstance(listed, list)
        else []
    )


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> TextTokenizer:
    """A tokenizer out of GGUF metadata (``tokenizer.ggml.*``)."""
    backend, names = build_from_gguf(metadata)
    end = names.get("eos_token")
    return TextTokenizer(
        backend,
        end_tokens=[end] if end else [],
        begin_token=names.get("bos_token"),
        roles={role: name for role, name in names.items() if role in _ROLES},
    )
