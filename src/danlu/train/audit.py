"""What is wrong with conversations and other rows that are written on, found before a run is paid for (findings.py).

Knows no model and trains nothing; needs the tokenizer and template that serving will use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from danlu.core.records import Message
from danlu.text.chat import ChatFormat, RenderedChat, conversation
from danlu.train.findings import Finding, Row, key_of, leaked, lost, only, repeated, too_long, unknown_tokens
from danlu.train.preferences import asked_and_answered


def audit_chats(
    rows: Sequence[Row],
    encoded: Sequence[RenderedChat],
    left_out: Mapping[str, int],
    validation: Sequence[Row],
    chat: ChatFormat,
) -> list[Finding]:
    """Conversations, also as prompt and completion, and texts: ``rows`` as they are, those that were ``encoded``, how
    many were ``left_out`` and why."""
    total = max(1, len(encoded) + sum(left_out.values()))
    told = [_told(row) for row in rows]
    return only(
        too_long(left_out.get("too_long", 0) / total),
        _without_answer(left_out.get("no_answer", 0) / total),
        _never_ends(encoded, chat),
        _served_otherwise(rows, chat),
        unknown_tokens([row.ids for row in encoded], chat.tokenizer),
        repeated([key_of(asked or answer) for asked, answer in told]),
        leaked([key_of(*one) for one in told], [key_of(*_told(row)) for row in validation]),
    )


def _without_answer(share: float) -> Finding | None:
    return lost(
        "no_answer",
        share,
        f"{share:.1%} of the rows have no token to learn: no assistant message, or an empty one.",
        "Give every conversation an answer.",
    )


def _never_ends(encoded: Sequence[RenderedChat], chat: ChatFormat) -> Finding | None:
    """Answers whose end is not learnt: the model would go on writing."""
    ends = chat.tokenizer.end_ids
    endless = sum(
        not any(learnt and i in ends for i, learnt in zip(row.ids, row.is_answer, strict=True)) for row in encoded
    )
    share = endless / max(1, len(encoded))
    if not share:
        return None
    names = ", ".join(chat.tokenizer.end_tokens)
    return Finding(
        code="never_ends",
        refuses=share > 0.5,
        share=share,
        message=f"In {share:.0%} of the rows no answer ends with the token that ends answers ({names}).",
        hint="Check the chat template: what it writes after an answer is what the model learns to stop with.",
    )


def _served_otherwise(rows: Sequence[Row], chat: ChatFormat, most: int = 200) -> Finding | None:
    """Conversations whose last answer follows other tokens in training than it would follow in serving."""
    differ, example, looked_at = 0, "", 0
    for row in [row for row in rows if "messages" in row][:most]:
        messages = conversation(row)
        if messages[-1]["role"] != "assistant" or len(messages) < 2:
            continue
        looked_at += 1
        asked = chat.render(messages[:-1], add_generation_prompt=True).ids
        learnt = chat.render(messages, add_generation_prompt=False).ids
        if learnt[: len(asked)] != asked:
            differ += 1
            place = next((i for i, (a, b) in enumerate(zip(asked, learnt, strict=False)) if a != b), len(learnt))
            begin = max(0, place - 8)
            served, trained = (_shown(chat, ids[begin : place + 8]) for ids in (asked, learnt))
            example = example or f"serving reads {served!r} where training reads {trained!r}"
    if not differ:
        return None
    return Finding(
        code="served_otherwise",
        refuses=True,
        share=differ / looked_at,
        message=f"In {differ / looked_at:.0%} of the rows the answer follows other tokens than it will in serving.",
        hint="Make the chat template write a prompt the same with and without the answer after it.",
        example=example,
    )


def _shown(chat: ChatFormat, ids: Sequence[int]) -> str:
    """Tokens as text, special ones too."""
    return chat.tokenizer.backend.decode(list(ids), skip_special_tokens=False)


def _told(row: Row) -> tuple[str, str]:
    """What a row asks, everything before its last answer, and that answer; a text asks nothing."""
    if "messages" in row:
        messages = conversation(row)
        end = len(messages) - 1 if messages[-1]["role"] == "assistant" else len(messages)
        return _joined(messages[:end]), _joined(messages[end:])
    return asked_and_answered(row, "completion") if "completion" in row else ("", str(row.get("text", "")))


def _joined(messages: Sequence[Message]) -> str:
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
