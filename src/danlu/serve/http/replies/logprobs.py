"""Log-probabilities of tokens in the two shapes of the OpenAI API: chats' and completions'.

Knows nothing of answers around them.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from danlu.core.records import TokenLogprob
from danlu.serve.http.replies.shared import token_text


class TopLogprob(Struct):
    """One likely token at a place of a chat answer."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(Struct):
    """One token of a chat answer."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    """Of all tokens of a chat answer, or of a piece of it."""

    content: list[ChatTokenLogprob]
    refusal: None = None


def chat_logprobs(tokens: Iterable[TokenLogprob], names: Mapping[int, bytes]) -> ChatLogprobs:
    """``names`` has the bytes of every token that is named."""
    content: list[ChatTokenLogprob] = []
    for token in tokens:
        name = names.get(token.token_id, b"")
        top = [_top(names.get(index, b""), logprob) for index, logprob in token.top]
        content.append(ChatTokenLogprob(token_text(name), _finite(token.logprob), list(name), top))
    return ChatLogprobs(content)


def _top(name: bytes, logprob: float) -> TopLogprob:
    return TopLogprob(token_text(name), _finite(logprob), list(name))


def _finite(logprob: float) -> float:
    """JSON has no infinity; what cannot happen gets OpenAI's floor."""
    return max(logprob, -9999.0)


class TextLogprobs(Struct):
    """Of all tokens of a completion, or of a piece of it: four lists side by side."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextLogprobsWriter:
    """The tokens of one completion, piece by piece; offsets count the characters of all of them."""

    def __init__(self, num_top: int) -> None:
        self._num_top = num_top
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def prompt(self, text: str, tokens: Sequence[TokenLogprob | None], names: Mapping[int, bytes]) -> TextLogprobs:
        """The prompt's own; nothing is known of the first token but what the others leave over of ``text``."""
        rest = b"".join(names.get(token.token_id, b"") for token in tokens if token is not None)
        whole = text.encode()
        first = whole[: len(whole) - len(rest)] if whole.endswith(rest) else b""
        return self.take(tokens, names, first)

    def take(
        self, tokens: Iterable[TokenLogprob | None], names: Mapping[int, bytes], unknown: bytes = b""
    ) -> TextLogprobs:
        """The next tokens; ``unknown`` stands for one of which nothing is known."""
        made = TextLogprobs([], [], [] if self._num_top else None, [])
        for token in tokens:
            name = unknown if token is None else names.get(token.token_id, b"")
            made.tokens.append(token_text(name))
            made.token_logprobs.append(None if token is None else _finite(token.logprob))
            made.text_offset.append(self._offset)
            self._offset += len(self._decoder.decode(name))
            if made.top_logprobs is not None:
                made.top_logprobs.append(None if token is None else self._likeliest(token, names))
        return made

    def _likeliest(self, token: TokenLogprob, names: Mapping[int, bytes]) -> dict[str, float]:
        """The likeliest tokens by their text, best first, and the one that was taken."""
        found: dict[str, float] = {}
        for index, logprob in (*token.top[: self._num_top], (token.token_id, token.logprob)):
            found.setdefault(token_text(names.get(index, b"")), _finite(logprob))
        return found


def joined(first: TextLogprobs, second: TextLogprobs) -> TextLogprobs:
    """Both, one after the other."""
    top = None if first.top_logprobs is None else first.top_logprobs + (second.top_logprobs or [])
    return TextLogprobs(
        first.tokens + second.tokens,
        first.token_logprobs + second.token_logprobs,
        top,
        first.text_offset + second.text_offset,
    )
