"""Rows of any form with something to say: {messages}, {prompt, completion} or {text}, as ids. Knows no training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from danlu.core.errors import DataError
from danlu.text.chat import ChatFormat, RenderedChat, conversation
from danlu.train.preferences import encode_answer
from danlu.train.texts import Encoded


def encode_rows(rows: Iterable[Mapping[str, Any]], chat: ChatFormat, max_tokens: int) -> Encoded[RenderedChat]:
    """Rows as ids: of messages and of prompt and completion the answers are learnt, of a text all of it.

    Left out: rows too long (``too_long``) or without a token to learn (``no_answer``). Raises DataError for a row of
    another form, TrainError when none is left.
    """
    encoded = Encoded[RenderedChat]()
    for row in rows:
        found = _encode(row, chat)
        reason = "too_long" if len(found.ids) > max_tokens else None if any(found.is_answer[1:]) else "no_answer"
        if reason:
            encoded.left_out[reason] += 1
        else:
            encoded.items.append(found)
    return encoded.refuse_none(f"something to learn within max_row_tokens {max_tokens}")


def _encode(row: Mapping[str, Any], chat: ChatFormat) -> RenderedChat:
    if "messages" in row:
        return chat.render(conversation(row), add_generation_prompt=False)
    if "completion" in row:
        return encode_answer(row, "completion", chat)
    text = row.get("text")
    if not isinstance(text, str):
        raise DataError(
            f"A row has the keys {', '.join(row) or '(none)'}.", "Give messages, prompt and completion, or text."
        )
    tokenizer = chat.tokenizer
    end = sorted(tokenizer.end_ids)[:1]
    begin = [] if tokenizer.begin_id is None or [tokenizer.begin_id] == end else [tokenizer.begin_id]
    ids = [*begin, *tokenizer.encode(text), *end]
    return RenderedChat(ids, [True] * len(ids))
