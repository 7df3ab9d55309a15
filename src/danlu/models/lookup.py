"""Prompt lookup (Saxena 2023): what followed the last tokens before is guessed to follow again.

A guess is checked in one pass over all its tokens, so what repeats costs one pass instead of many. The answer is that
of greedy writing, token for token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from danlu.core.errors import RequestError
from danlu.core.records import Delta
from danlu.models.decoding import Rows
from danlu.models.model import Model
from danlu.models.sampling import pick_tokens
from danlu.models.writing import Writing

_LONGEST_MATCH = 3
"""Tokens that have to be alike, tried from here down to 1."""


def write_with_lookup(model: Model, writing: Writing) -> Iterator[Delta]:
    """Write one answer to the end. Raises RequestError for stacks with recurrent layers."""
    most = writing.options.lookup_tokens
    if model.stack_config.is_recurrent:
        raise RequestError(
            "This model has recurrent layers, which cannot take tokens back.", "Leave lookup_tokens out.",
            param="lookup_tokens",
        )  # fmt: skip
    rows = Rows(model, [writing])
    (token,) = pick_tokens(rows.logits(), [writing])
    while True:
        yield writing.push(token)
        if writing.finish_reason is not None:
            return
        ids = [*(writing.source_ids or ()), *writing.prompt_ids, *writing.token_ids]
        guessed = guess(ids, min(most, writing.limit - len(writing.token_ids) - 1))
        hidden = rows.read([[token, *guessed]])
        logits = rows.logits(hidden[0])  # (1 + guessed, V)
        for place in range(len(guessed) + 1):
            (token,) = pick_tokens(logits[place : place + 1], [writing])
            if place == len(guessed) or token != guessed[place]:
                rows.rewind(len(guessed) - place)
                break
            yield writing.push(token)
            if writing.finish_reason is not None:
                return


def guess(ids: Sequence[int], most: int) -> list[int]:
    """What followed the last time the newest tokens stood in ``ids``; the longest match wins. Empty for no match."""
    for size in range(min(_LONGEST_MATCH, len(ids) - 1), 0, -1):
        newest = list(ids[-size:])
        for start in range(len(ids) - size - 1, -1, -1):
            if list(ids[start : start + size]) == newest:
                return list(ids[start + size : start + size + most])
    return []
