"""What is wrong with conversations and labelled texts, found before a run is paid for (findings.py).

Knows no model and trains nothing; needs the tokenizer and template that serving will use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from danlu.text.chat import ChatFormat, RenderedChat, conversation
from danlu.train.findings import MOST_LEFT_OUT, WARN_LEFT_OUT, Finding, key_of, leaked, lost, repeated, too_long

MOST_CONTRADICTED = 0.1
"""A run is refused when more rows than this stand there with two different labels."""
_WARN_UNKNOWN = 0.02
_WARN_NAMED = 0.5
_SHOWN = 120


def audit_chats(
    rows: Sequence[Mapping[str, Any]],
    encoded: Sequence[RenderedChat],
    left_out: Mapping[str, int],
    validation: Sequence[Mapping[str, Any]],
    chat: ChatFormat,
) -> list[Finding]:
    """Conversations: ``rows`` as they are, those that were ``encoded``, how many were ``left_out`` and why."""
    total = max(1, len(encoded) + sum(left_out.values()))
    found = [
        too_long(left_out.get("too_long", 0) / total),
        _without_answer(left_out.get("no_answer", 0) / total),
        _never_ends(encoded, chat),
        _served_otherwise(rows, chat),
        _unknown_tokens(encoded, chat),
        repeated([_question(row) for row in rows]),
        leaked([_key(row) for row in rows], [_key(row) for row in validation]),
    ]
    return [finding for finding in found if finding is not None]


def audit_labels(
    texts: Sequence[str], labels: Sequence[str], validation: Sequence[str], *, too_long: float = 0.0
) -> list[Finding]:
    """Labelled texts: ``too_long`` is the share of texts that lose tokens."""
    found = [
        _truncated(too_long),
        _contradicted(texts, labels),
        _one_label(labels),
        _names_its_label(texts, labels),
        leaked([key_of(text) for text in texts], [key_of(text) for text in validation]),
    ]
    return [finding for finding in found if finding is not None]


def _truncated(share: float) -> Finding | None:
    return lost(
        "truncated",
        share,
        f"{share:.0%} of the texts are longer than max_row_tokens and lose their end.",
        "Raise max_row_tokens, or a model with a longer context.",
        quiet=WARN_LEFT_OUT,
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


def _served_otherwise(rows: Sequence[Mapping[str, Any]], chat: ChatFormat, most: int = 200) -> Finding | None:
    """Conversations whose last answer follows other tokens in training than it would follow in serving."""
    differ, example, looked_at = 0, "", 0
    for row in rows[:most]:
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


def _unknown_tokens(encoded: Sequence[RenderedChat], chat: ChatFormat) -> Finding | None:
    unknown = chat.tokenizer.unk_id
    total = sum(len(row.ids) for row in encoded)
    if unknown is None or not total:
        return None
    share = sum(row.ids.count(unknown) for row in encoded) / total
    if share <= _WARN_UNKNOWN:
        return None
    return Finding(
        code="unknown_tokens",
        refuses=share > MOST_LEFT_OUT,
        share=share,
        message=f"{share:.0%} of the tokens are unknown to the tokenizer.",
        hint="Use a model whose vocabulary has this language.",
    )


def _contradicted(texts: Sequence[str], labels: Sequence[str]) -> Finding | None:
    seen: dict[str, set[str]] = {}
    for text, label in zip(texts, labels, strict=True):
        seen.setdefault(key_of(text), set()).add(label)
    several = [key for key, found in seen.items() if len(found) > 1]
    share = sum(key_of(text) in set(several) for text in texts) / max(1, len(texts)) if several else 0.0
    if not share:
        return None
    example = next(text for text in texts if len(seen[key_of(text)]) > 1)
    return Finding(
        code="contradicted",
        refuses=share > MOST_CONTRADICTED,
        share=share,
        message=f"{share:.1%} of the rows have a text that stands there with another label too.",
        hint="Keep one label for each text.",
        example=repr(example[:_SHOWN]),
    )


def _one_label(labels: Sequence[str]) -> Finding | None:
    if len(set(labels)) > 1:
        return None
    return Finding(
        code="one_label",
        refuses=True,
        share=1.0,
        message=f"Every row has the label {labels[0] if labels else None!r}: there is nothing to tell apart.",
        hint="Give rows of at least two labels.",
    )


def _names_its_label(texts: Sequence[str], labels: Sequence[str]) -> Finding | None:
    """Texts that contain their own label's name far more often than others contain it: the answer in the question."""
    names = {label for label in labels if len(label) >= 4}  # "0" or "pos" stand in many texts by chance
    counted: Counter[bool] = Counter()
    for text, label in zip(texts, labels, strict=True):
        if label in names:
            counted[label.lower() in text.lower()] += 1
    share = counted[True] / max(1, counted.total())
    if share <= _WARN_NAMED:
        return None
    return Finding(
        code="names_its_label",
        refuses=False,
        share=share,
        message=f"{share:.0%} of the texts contain the name of their label.",
        hint="If the text was made from the label, the model learns nothing else: take the name out.",
    )


def _shown(chat: ChatFormat, ids: Sequence[int]) -> str:
    """Tokens as text, special ones too."""
    return chat.tokenizer.backend.decode(list(ids), skip_special_tokens=False)


def _question(row: Mapping[str, Any]) -> str:
    """What a conversation asks: everything before its last answer."""
    messages = conversation(row)
    end = len(messages) - 1 if messages[-1]["role"] == "assistant" else len(messages)
    return key_of("\n".join(f"{message['role']}: {message['content']}" for message in messages[:end]))


def _key(row: Mapping[str, Any]) -> str:
    """A whole conversation."""
    return key_of("\n".join(f"{message['role']}: {message['content']}" for message in conversation(row)))
