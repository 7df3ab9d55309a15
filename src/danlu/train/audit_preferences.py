"""What is wrong with compared answers, judged answers and prompts to try, found before a run is paid for (findings.py).

Looks at rows as they stand, and at how many could not be encoded. Knows no model and trains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from danlu.train.findings import (
    SHOWN,
    Finding,
    Row,
    contradicted,
    half_leaked,
    key_of,
    leaked,
    lost,
    only,
    repeated,
    too_long,
    truncated,
)
from danlu.train.preferences import asked_and_answered, judgements

_MOST_EMPTY = 0.1
"""A run is refused when more rows than this have an answer of no letter."""
_WARN_LONGER = 0.9
_FEW_ROWS = 20


def audit_pairs(
    rows: Sequence[Row], validation: Sequence[Row], left_out: Mapping[str, int], cut: int = 0
) -> list[Finding]:
    """Rows of prompt, chosen and rejected; how many were ``left_out`` and why, and how many are ``cut``."""
    total = max(1, len(rows))
    pairs = [_pair(row) for row in rows]
    watched = [_pair(row) for row in validation]
    return only(
        too_long(left_out.get("too_long", 0) / total),
        truncated(cut / total, what="rows", loses="the end of an answer"),
        _equal(left_out.get("same", 0) / total),
        _nothing_to_learn(left_out.get("no_answer", 0) / total),
        _empty([(prompt, answer) for prompt, *answers in pairs for answer in answers], len(rows)),
        _reversed(pairs),
        _longer_wins(pairs),
        repeated([key_of(*pair) for pair in pairs], "stand there more than once"),
        leaked([key_of(*pair) for pair in pairs], [key_of(*pair) for pair in watched]),
        half_leaked(
            "prompts_leaked", [key_of(pair[0]) for pair in pairs], [key_of(pair[0]) for pair in watched], "a prompt"
        ),
    )


def audit_judged(rows: Sequence[Row], validation: Sequence[Row], left_out: Mapping[str, int]) -> list[Finding]:
    """Rows of prompt, completion and label, or pairs, which make two of these each."""
    found = [one for row in rows for one in judgements(row)]
    watched = [one for row in validation for one in judgements(row)]
    told = [asked_and_answered(one, "completion") for one in found]
    total = max(1, len(found))
    labels = [bool(one["label"]) for one in found]
    return only(
        too_long(left_out.get("too_long", 0) / total),
        _nothing_to_learn(left_out.get("no_answer", 0) / total),
        _empty(told, total),
        _one_sided(labels),
        _liked_and_not(told, labels),
        half_leaked(
            "prompts_leaked",
            [key_of(prompt) for prompt, _ in told],
            [key_of(asked_and_answered(one, "completion")[0]) for one in watched],
            "a prompt",
        ),
    )


def audit_prompts(
    prompts: Sequence[str], validation: Sequence[str], left_out: Mapping[str, int], missing: Mapping[str, int]
) -> list[Finding]:
    """Prompts that a policy tries answers to; ``missing``: in how many of their rows each column that a reward reads
    is not there."""
    total = max(1, len(prompts) + left_out.get("too_long", 0))
    keys, watched = ([key_of(prompt) for prompt in some] for some in (prompts, validation))
    return only(
        too_long(left_out.get("too_long", 0) / total, "max_prompt_tokens"),
        *(_without_column(name, count / max(1, len(prompts))) for name, count in missing.items()),
        repeated(keys),
        leaked(keys, watched),
    )


def _pair(row: Row) -> tuple[str, str, str]:
    """Prompt, chosen and rejected as texts."""
    prompt, chosen = asked_and_answered(row, "chosen")
    return prompt, chosen, asked_and_answered(row, "rejected")[1]


def _equal(share: float) -> Finding | None:
    return lost(
        "same",
        share,
        f"In {share:.1%} of the rows chosen and rejected are equal; they are left out.",
        "Leave them out yourself, or look at how the pairs were made.",
    )


def _nothing_to_learn(share: float) -> Finding | None:
    return lost(
        "no_answer",
        share,
        f"{share:.1%} of the rows have no token to learn: every one is masked by the chat template.",
        "Check the chat template, and that answers are the assistant's.",
    )


def _empty(told: Sequence[tuple[str, str]], rows: int) -> Finding | None:
    """Answers without a letter: the model would learn, or unlearn, to say nothing."""
    empty = [prompt for prompt, answer in told if not answer.strip()]
    share = min(1.0, len(empty) / max(1, rows))
    if not empty:
        return None
    return Finding(
        code="empty_answer",
        refuses=share > _MOST_EMPTY,
        share=share,
        message=f"{share:.1%} of the rows have an empty answer.",
        hint="Leave these rows out.",
        example=f"the answer to {empty[0][-SHOWN:]!r}",
    )


def _reversed(pairs: Sequence[tuple[str, str, str]]) -> Finding | None:
    known = {key_of(*pair) for pair in pairs}
    against = [
        prompt for prompt, chosen, rejected in pairs if chosen != rejected and key_of(prompt, rejected, chosen) in known
    ]
    return contradicted(against, len(pairs), "have a pair that stands there the other way round too")


def _liked_and_not(told: Sequence[tuple[str, str]], labels: Sequence[bool]) -> Finding | None:
    seen: dict[str, set[bool]] = {}
    for one, label in zip(told, labels, strict=True):
        seen.setdefault(key_of(*one), set()).add(label)
    both = [one for one in told if len(seen[key_of(*one)]) > 1]
    return contradicted(
        [answer for _, answer in both], len(told), "have an answer that is liked in one row and not in another"
    )


def _one_sided(labels: Sequence[bool]) -> Finding | None:
    if not labels or len(set(labels)) > 1:
        return None
    return Finding(
        code="one_label",
        refuses=True,
        share=1.0,
        message=f"Every answer is {'liked' if labels[0] else 'not liked'}: there is nothing to prefer.",
        hint="Give rows of both labels, or use sft for answers that are all good.",
    )


def _longer_wins(pairs: Sequence[tuple[str, str, str]]) -> Finding | None:
    """Pairs of which nearly always the longer, or the shorter, answer is chosen: an easy thing to learn instead."""
    differ = [len(chosen) > len(rejected) for _, chosen, rejected in pairs if len(chosen) != len(rejected)]
    if len(differ) < _FEW_ROWS:
        return None
    longer = sum(differ) / len(differ)
    share = max(longer, 1.0 - longer)
    if share <= _WARN_LONGER:
        return None
    which = "longer" if longer > 0.5 else "shorter"
    return Finding(
        code="length_tells",
        refuses=False,
        share=share,
        message=f"In {share:.0%} of the pairs the {which} answer is chosen.",
        hint="The model may learn length and nothing else; add pairs of equal length.",
    )


def _without_column(name: str, share: float) -> Finding | None:
    if not share:
        return None
    return Finding(
        code="no_column",
        refuses=True,
        share=share,
        message=f"{share:.0%} of the rows have no {name!r}, which a reward reads.",
        hint="Add it to the rows, or name another column in the reward.",
    )
