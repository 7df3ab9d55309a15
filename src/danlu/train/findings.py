"""What may be wrong with training data, how it is told, and what is looked for in rows of every kind.

A finding either refuses the run or warns. Each says how much of the data it is about, shows one example, and what to
do. Knows no task; the audit_… files do, one for each kind of rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from danlu.core.errors import TrainError
from danlu.core.events import Events
from danlu.text.tokenizer import TextTokenizer

MOST_LEFT_OUT = 0.3
"""A run is refused when more of its rows than this are too long, or teach nothing."""
MOST_LEAKED = 0.05
"""… and when more of the validation rows than this are training rows too."""
WARN_LEFT_OUT = 0.02
"""Fewer are not worth a word."""
MOST_CONTRADICTED = 0.1
"""A run is refused when more rows than this are contradicted by another one."""
SHOWN = 120
"""Characters of an example."""
_WARN_REPEATED = 0.05
_WARN_UNKNOWN = 0.02

Row = Mapping[str, Any]
"""A row as the person wrote it."""
Strictness = Literal["refuse", "warn", "off"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    code: str
    """A short name that stays the same."""
    refuses: bool
    """Whether a run should not start."""
    share: float
    """Of how many rows it is true, 0 to 1."""
    message: str
    """What was found."""
    hint: str
    """What to do."""
    example: str = ""
    """One row it is true of, shortened."""


def report(findings: Sequence[Finding], strictness: Strictness, events: Events) -> list[dict[str, Any]]:
    """Tell the person every finding; raise TrainError for the first that refuses, unless told only to warn.

    Returns the findings as plain values, for the manifest.
    """
    if strictness == "off":
        return []
    for finding in findings:
        if finding.refuses and strictness == "refuse":
            shown = f" For example: {finding.example}." if finding.example else ""
            raise TrainError(f"{finding.message}{shown}", f"{finding.hint} (audit: warn trains all the same.)")
        events.say(f"Data: {finding.message} {finding.hint}")
    return [{"code": f.code, "share": round(f.share, 4), "message": f.message} for f in findings]


def only(*found: Finding | None) -> list[Finding]:
    """Those that there are."""
    return [finding for finding in found if finding is not None]


def lost(code: str, share: float, message: str, hint: str, *, quiet: float = 0.0) -> Finding | None:
    """Rows that are left out or cut: no word up to ``quiet`` of them, and no run above ``MOST_LEFT_OUT``."""
    if share <= quiet:
        return None
    return Finding(code=code, refuses=share > MOST_LEFT_OUT, share=share, message=message, hint=hint)


def too_long(share: float, limit: str = "max_row_tokens") -> Finding | None:
    """Rows longer than ``limit`` allows, which are not trained on."""
    return lost(
        "too_long",
        share,
        f"{share:.0%} of the rows are longer than {limit} and would be left out.",
        f"Raise {limit}, or split long conversations.",
        quiet=WARN_LEFT_OUT,
    )


def unusable(left_out: Mapping[str, int], total: int, words: Mapping[str, str], hint: str) -> list[Finding | None]:
    """Rows of ``total`` that are left out, a finding for each reason; ``words`` say of each what the rows are like."""
    shares = {reason: left_out.get(reason, 0) / max(1, total) for reason in words}
    return [
        lost(reason, share, f"{share:.1%} of the rows {words[reason]} and would be left out.", hint)
        for reason, share in shares.items()
    ]


def truncated(
    share: float, limit: str = "max_row_tokens", what: str = "texts", loses: str = "their end"
) -> Finding | None:
    """``what`` is cut at ``limit``."""
    return lost(
        "truncated",
        share,
        f"{share:.0%} of the {what} are longer than {limit} and lose {loses}.",
        f"Raise {limit}, or use a model with a longer context.",
        quiet=WARN_LEFT_OUT,
    )


def unknown_tokens(rows: Iterable[Sequence[int]], tokenizer: TextTokenizer | None) -> Finding | None:
    """Ids of rows that stand for text the tokenizer cannot write; there are none without a tokenizer, or where its
    unknown token is also the one that ends or fills rows."""
    unknown = None if tokenizer is None else tokenizer.unk_id
    if tokenizer is None or unknown is None or unknown in tokenizer.end_ids | {tokenizer.pad_id}:
        return None
    total = counted = 0
    for ids in rows:
        total += len(ids)
        counted += list(ids).count(unknown)
    share = counted / max(1, total)
    return lost(
        "unknown_tokens",
        share,
        f"{share:.0%} of the tokens are unknown to the tokenizer.",
        "Use a model whose vocabulary has this language.",
        quiet=_WARN_UNKNOWN,
    )


def contradicted(
    examples: Sequence[str], total: int, what: str, hint: str = "Keep one opinion on each."
) -> Finding | None:
    """Rows that another row contradicts: one example for each of them, of ``total`` rows."""
    if not examples:
        return None
    share = len(examples) / max(1, total)
    return Finding(
        code="contradicted",
        refuses=share > MOST_CONTRADICTED,
        share=share,
        message=f"{share:.1%} of the rows {what}.",
        hint=hint,
        example=repr(examples[0][:SHOWN]),
    )


def all_alike(code: str, values: Sequence[object], what: str, hint: str) -> Finding | None:
    """Rows that all say the same where they must differ; ``what`` begins the sentence."""
    if len(values) < 2 or len(set(values)) > 1:
        return None
    message = f"{what} {str(values[0])[:SHOWN]!r}: there is nothing to tell apart."
    return Finding(code=code, refuses=True, share=1.0, message=message, hint=hint)


def repeated(
    keys: Sequence[str],
    what: str = "ask what another row asks",
    hint: str = "Deduplicate, unless several answers to one question are meant.",
) -> Finding | None:
    """Rows that say the same as another one; ``what`` they do in words."""
    share = 1.0 - len(set(keys)) / max(1, len(keys))
    if share <= _WARN_REPEATED:
        return None
    return Finding(
        code="repeated",
        refuses=False,
        share=share,
        message=f"{share:.0%} of the rows {what}.",
        hint=hint,
    )


def leaked(train: Sequence[str], validation: Sequence[str]) -> Finding | None:
    """Validation rows that are trained on: their loss says nothing."""
    known = set(train)
    share = sum(key in known for key in validation) / max(1, len(validation))
    if not share:
        return None
    return Finding(
        code="leaked",
        refuses=share > MOST_LEAKED,
        share=share,
        message=f"{share:.0%} of the validation rows are training rows too.",
        hint="Split by what a row is about before training, and deduplicate across splits.",
    )


def half_leaked(code: str, train: Sequence[str], validation: Sequence[str], what: str) -> Finding | None:
    """Validation rows of which ``what``, the half that is asked, is trained on with another answer."""
    known = set(train)
    share = sum(key in known for key in validation) / max(1, len(validation))
    if share <= MOST_LEAKED:
        return None
    return Finding(
        code=code,
        refuses=share > MOST_LEFT_OUT,
        share=share,
        message=f"{share:.0%} of the validation rows have {what} that training rows have too.",
        hint=f"Split by {what.rpartition(' ')[2]} before training.",
    )


def key_of(*texts: str) -> str:
    """One short key for texts that differ in case and space only."""
    told = "\0".join(" ".join(text.casefold().split()) for text in texts)
    return hashlib.blake2b(told.encode(), digest_size=12).hexdigest()
