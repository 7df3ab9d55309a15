"""What may be wrong with training data, how it is told, and what is looked for in rows of every kind.

A finding either refuses the run or warns. Each says how much of the data it is about, shows one example, and what to
do. Knows no task; audit.py and audit_preferences.py do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from danlu.core.errors import TrainError
from danlu.core.events import Events

MOST_LEFT_OUT = 0.3
"""A run is refused when more of its rows than this are too long, or teach nothing."""
MOST_LEAKED = 0.05
"""… and when more of the validation rows than this are training rows too."""
WARN_LEFT_OUT = 0.02
"""Fewer are not worth a word."""
_WARN_REPEATED = 0.05

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


def repeated(keys: Sequence[str], what: str = "ask what another row asks") -> Finding | None:
    """Rows that say the same as another one; ``what`` they do in words."""
    share = 1.0 - len(set(keys)) / max(1, len(keys))
    if share <= _WARN_REPEATED:
        return None
    return Finding(
        code="repeated",
        refuses=False,
        share=share,
        message=f"{share:.0%} of the rows {what}.",
        hint="Deduplicate, unless several answers to one question are meant.",
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


def key_of(text: str) -> str:
    """One short key for texts that differ in case and space only."""
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=12).hexdigest()
