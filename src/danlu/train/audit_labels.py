"""What is wrong with labelled texts and images, and with tagged words, found before a run is paid for (findings.py).

Looks at rows as they stand, and at what became of them as ids. Knows no model and trains nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from danlu.models.spans import OUTSIDE, is_one_word
from danlu.text.tokenizer import TextTokenizer
from danlu.train.audit_images import unreadable
from danlu.train.findings import (
    Finding,
    Row,
    all_alike,
    contradicted,
    key_of,
    leaked,
    lost,
    only,
    repeated,
    truncated,
    unknown_tokens,
    unusable,
)
from danlu.train.labelled import Labelled
from danlu.train.tagged import Tagged
from danlu.train.texts import Encoded

_WARN_NAMED = 0.5
_WARN_LOPSIDED = 0.95
_WARN_INSIDE = 0.02
_CLASSIFY = {
    "empty": "have no text",
    "no_label": "have no label",
    "unknown_label": "have a label that the model's head does not have",
    "several_labels": "have no label, or several where there is one",
}
_TAG = {
    "empty": "have no word",
    "no_tags": "have no tags and no spans",
    "unknown_tag": "have a tag that the model's head does not have",
}


def audit_labels(
    rows: Sequence[Row], validation: Sequence[Row], found: Encoded[Labelled], tokenizer: TextTokenizer | None = None
) -> list[Finding]:
    """Rows of text or image, and label or score; ``found`` is what became of them."""
    items, labels = found.items, [_label(row) for row in rows]
    by_name = [(row, label) for row, label in zip(rows, labels, strict=True) if row.get("label") is not None]
    return only(
        *unusable(found.left_out, len(rows), _CLASSIFY, "Give every row a text or an image, and a label."),
        truncated(found.truncated / max(1, len(items))),
        unreadable([item.row for item in items if isinstance(item.row, Path)]),
        unknown_tokens([item.row[0] for item in items if not isinstance(item.row, Path)], tokenizer),
        _told_otherwise([row for row, _ in by_name], [label for _, label in by_name]),
        all_alike("one_label", labels, "Every row has the label", "Give rows of at least two labels."),
        _lopsided([label for _, label in by_name]),
        _names_its_label([str(row.get("text") or "") for row, _ in by_name], [label for _, label in by_name]),
        leaked([_asked(row) for row in rows], [_asked(row) for row in validation]),
    )


def audit_tags(
    rows: Sequence[Row],
    validation: Sequence[Row],
    found: Encoded[Tagged],
    labels: Sequence[str],
    tokenizer: TextTokenizer | None = None,
) -> list[Finding]:
    """Rows of tokens and tags, or of text and spans; ``labels`` are the head's, by the index that items have."""
    items = found.items
    texts = [_words(row) for row in rows]
    return only(
        *unusable(found.left_out, len(rows), _TAG, "Give every row words, and a tag for each or spans."),
        truncated(found.truncated / max(1, len(items))),
        _nothing_found([[labels[tag] for tag in item.tags] for item in items]),
        _never_used(items, labels),
        _inside_words(rows),
        _tagged_otherwise(rows, texts),
        unknown_tokens([item.row[0] for item in items], tokenizer),
        repeated([key_of(text) for text in texts], "stand there more than once", "Deduplicate."),
        leaked([key_of(text) for text in texts], [key_of(_words(row)) for row in validation]),
    )


def _asked(row: Row) -> str:
    """A short key of what a label is of."""
    return key_of(str(row.get("text") or row.get("image") or ""), str(row.get("text_pair") or ""))


def _label(row: Row) -> str:
    label = row.get("label", row.get("score"))
    return ", ".join(sorted(map(str, label))) if isinstance(label, list) else str(label)


def _told_otherwise(rows: Sequence[Row], labels: Sequence[str]) -> Finding | None:
    seen: dict[str, set[str]] = {}
    for row, label in zip(rows, labels, strict=True):
        seen.setdefault(_asked(row), set()).add(label)
    both = [str(row.get("text") or row.get("image")) for row in rows if len(seen[_asked(row)]) > 1]
    what = "have a text that stands there with another label too"
    return contradicted(both, len(rows), what, "Keep one label for each text.")


def _lopsided(labels: Sequence[str]) -> Finding | None:
    """Nearly all rows have one label: saying it always is nearly always right."""
    ((label, count),) = Counter(labels).most_common(1) or [("", 0)]
    share = count / max(1, len(labels))
    if not _WARN_LOPSIDED < share < 1.0:
        return None
    return Finding(
        code="lopsided",
        refuses=False,
        share=share,
        message=f"{share:.0%} of the rows have the label {label!r}: always saying it would be right as often.",
        hint="Look at macro-F1 instead of accuracy, or give more rows of the others.",
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


def _words(row: Row) -> str:
    return " ".join(map(str, row.get("tokens") or ())) or str(row.get("text") or "")


def _nothing_found(tags: Sequence[Sequence[str]]) -> Finding | None:
    """Rows in which every word is outside."""
    share = sum(set(row) == {OUTSIDE} for row in tags) / max(1, len(tags))
    if share <= _WARN_LOPSIDED:
        return None
    return Finding(
        code="all_outside",
        refuses=share == 1.0,
        share=share,
        message=f"In {share:.0%} of the rows every word is tagged {OUTSIDE}.",
        hint="Give rows with something to find; a few without are enough.",
    )


def _never_used(items: Sequence[Tagged], labels: Sequence[str]) -> Finding | None:
    """Tags that no word has; I-X may be missing where all entities are one word."""
    used = {labels[tag] for item in items for tag in item.tags}
    missing = [label for label in labels if label not in used and not label.startswith("I-") and label != OUTSIDE]
    if not missing:
        return None
    return Finding(
        code="unused_tags",
        refuses=False,
        share=len(missing) / len(labels),
        message=f"No word has the tag {', '.join(missing[:8])}: it would never be learnt.",
        hint="Look at how tags are written, or take these out of labels.",
    )


def _inside_words(rows: Sequence[Row]) -> Finding | None:
    """Spans that begin inside a word: tags are of whole words, so these are learnt as outside."""
    starts = [(str(row.get("text") or ""), int(span["start"])) for row in rows for span in row.get("spans") or ()]
    inside = [text[max(0, start - 20) : start + 20] for text, start in starts if is_one_word(text, start)]
    share = len(inside) / max(1, len(starts))
    return lost(
        "inside_words",
        share,
        f"{share:.0%} of the spans begin inside a word ({', '.join(map(repr, inside[:1]))}), and tags are of words.",
        "Count characters from 0, and let spans begin where words begin.",
        quiet=_WARN_INSIDE,
    )


def _tagged_otherwise(rows: Sequence[Row], texts: Sequence[str]) -> Finding | None:
    told = [str(row.get("tags")) + str(row.get("spans")) for row in rows]
    seen: dict[str, set[str]] = {}
    for text, tags in zip(texts, told, strict=True):
        seen.setdefault(text, set()).add(tags)
    both = [text for text in texts if len(seen[text]) > 1]
    return contradicted(both, len(rows), "have a text that stands there with other tags too", "Keep one of each.")
