"""What tokens stand for, for answers that name tokens one by one. Knows no model."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from danlu.core.records import TokenLogprob
from danlu.text.token_bytes import token_bytes
from danlu.text.tokenizer import TextTokenizer


class Spelling:
    """The bytes of each token of a vocabulary; made once, when they are first asked for."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer

    @functools.cached_property
    def _pieces(self) -> Sequence[bytes] | None:
        return token_bytes(self._tokenizer)

    @functools.cached_property
    def _names(self) -> dict[int, bytes]:
        return {index: name.encode() for name, index in self._tokenizer.special_ids.items()}

    def bytes_of(self, token: int) -> bytes:
        """UTF-8 of one token, perhaps part of a character; the name of a special one; nothing for an id without one."""
        name = self._names.get(token)
        if name is not None:
            return name
        pieces = self._pieces
        if pieces is None:  # what a token stands for depends on its neighbours: as it would begin a text
            return self._tokenizer.decode([token]).encode() if token < self._tokenizer.vocabulary_size else b""
        return pieces[token] if token < len(pieces) else b""

    def of(self, noted: Iterable[TokenLogprob | None], ids: Iterable[int] = ()) -> dict[int, bytes]:
        """Of all tokens that log-probabilities name, and of ``ids``."""
        named = {token for one in noted if one is not None for token in (one.token_id, *(i for i, _ in one.top))}
        return {token: self.bytes_of(token) for token in {*named, *ids}}
