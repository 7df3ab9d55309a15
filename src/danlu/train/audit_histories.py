"""What is wrong with histories of users, found before a run is paid for (findings.py). Knows no model."""

from __future__ import annotations

from collections.abc import Mapping

from danlu.train.findings import Finding, only
from danlu.train.histories import Histories

_MOST_UNORDERED = 0.9
_WARN_SHARE = 0.3


def audit_histories(found: Histories) -> list[Finding]:
    """What users did, split already."""
    counts = found.counts
    kept = max(1, counts["train_events"] + 2 * len(found.test))
    nothing_to_ask = "is asked nothing: of its rows fewer than three are left"
    return only(
        _one_item(counts),
        _nothing_follows(found),
        _unordered(counts["same_time"] / kept),
        _told("short_users", counts["short_users"] / max(1, counts["users"]), f"of the users {nothing_to_ask}."),
        _told(
            "repeated",
            counts["repeated"] / (kept + counts["repeated"]),
            "of the rows name what their user had before.",
        ),
        _told(
            "cold_items", counts["cold_test"] / max(1, len(found.test)), "of the test cases ask for an unknown item."
        ),
    )


def _one_item(counts: Mapping[str, int]) -> Finding | None:
    if counts["items"] > 1:
        return None
    message = "There is one item: there is nothing to choose from."
    return Finding(code="one_item", refuses=True, share=1.0, message=message, hint="Look at which column is the item.")


def _nothing_follows(found: Histories) -> Finding | None:
    """Histories of one item teach how often an item is chosen, and not what follows it."""
    share = sum(len(items) < 2 for items in found.train) / max(1, len(found.train))
    if share < 1.0:
        return None
    return Finding(
        code="nothing_follows",
        refuses=True,
        share=share,
        message="No user has two items to learn from: there is nothing that follows another.",
        hint="Give longer histories; each user's last two items are kept for validation and test.",
    )


def _unordered(share: float) -> Finding | None:
    """Rows of one user and one time: nobody knows which came first."""
    if share <= _WARN_SHARE:
        return None
    return Finding(
        code="no_order",
        refuses=share > _MOST_UNORDERED,
        share=min(1.0, share),
        message=f"{min(1.0, share):.0%} of the rows have the time of another row of their user.",
        hint="Give times that tell which came first.",
    )


def _told(code: str, share: float, what: str) -> Finding | None:
    if share <= _WARN_SHARE:
        return None
    return Finding(code=code, refuses=False, share=share, message=f"{share:.0%} {what}", hint="Look at the data.")
