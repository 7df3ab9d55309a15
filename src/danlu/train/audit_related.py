"""What is wrong with rows of two sides that belong together, found before a run is paid for (findings.py).

Two texts for embeddings, a source and a target, an image and a text. Looks at rows as they stand, and at what became of
them as ids. Knows no model and trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from danlu.text.tokenizer import TextTokenizer
from danlu.train.audit_images import unreadable
from danlu.train.captioned import Captioned
from danlu.train.findings import (
    WARN_LEFT_OUT,
    Finding,
    Row,
    all_alike,
    contradicted,
    half_leaked,
    key_of,
    leaked,
    lost,
    only,
    repeated,
    truncated,
    unknown_tokens,
    unusable,
)
from danlu.train.related import Related, negatives_of
from danlu.train.source_target import SourceTarget
from danlu.train.texts import Encoded

_MOST_COPIED = 0.9
_TWICE = ("stand there more than once", "Deduplicate.")
_NO_IMAGE = {
    "no_text": "have no text",
    "no_image": "have no image",
    "missing_image": "name an image that is no file",
}


def audit_related(
    rows: Sequence[Row],
    validation: Sequence[Row],
    found: Encoded[Related],
    *,
    loss: str,
    tokenizer: TextTokenizer | None = None,
) -> list[Finding]:
    """Rows of anchor and positive, with negatives or, unless ``loss`` is contrastive, with a score; ``found`` is what
    became of them."""
    items, pairs = found.items, [_pair(row) for row in rows]
    keys = [key_of(*pair) for pair in pairs]
    several = _one_for_all(pairs) if loss == "contrastive" else _scores([item.score for item in items], loss)
    return only(
        *unusable(
            found.left_out,
            len(rows),
            {"empty": "have an empty text", "no_score": "have no score"},
            "Give every row all its texts, and a score where the loss reads one.",
        ),
        truncated(found.truncated / max(1, sum(len(item.rows) for item in items))),
        unknown_tokens([ids for item in items for ids, _ in item.rows], tokenizer),
        *several,
        *([_equal(pairs), _own_negative(rows, pairs)] if loss == "contrastive" else []),
        repeated(keys, *_TWICE),
        leaked(keys, [key_of(*_pair(row)) for row in validation]),
    )


def audit_targets(
    rows: Sequence[Row],
    validation: Sequence[Row],
    found: Encoded[SourceTarget],
    *,
    ends: bool = True,
    tokenizer: TextTokenizer | None = None,
) -> list[Finding]:
    """Rows of source and target; ``ends``: whether the model has a token that ends targets."""
    items = found.items
    pairs = [(str(row.get("source") or ""), str(row.get("target") or "")) for row in rows]
    hint = "Give rows whose targets differ."
    return only(
        *unusable(found.left_out, len(rows), {"empty": "have an empty side"}, "Give every row a source and a target."),
        truncated(found.truncated / max(1, len(items)), "max_source_tokens or max_target_tokens", "rows"),
        _endless(ends),
        unknown_tokens([item.source for item in items], tokenizer),
        unknown_tokens([item.target for item in items], None if tokenizer is None else tokenizer.target),
        all_alike("one_target", [target for _, target in pairs], "Every row has the target", hint),
        _copied(pairs),
        repeated([key_of(source) for source, _ in pairs]),
        leaked([key_of(*pair) for pair in pairs], [_key(row, "source", "target") for row in validation]),
        half_leaked(
            "sources_leaked",
            [key_of(source) for source, _ in pairs],
            [_key(row, "source") for row in validation],
            "a source",
        ),
    )


def audit_captions(
    rows: Sequence[Row], validation: Sequence[Row], found: Encoded[Captioned], tokenizer: TextTokenizer | None = None
) -> list[Finding]:
    """Rows of image and text; one image may have several texts."""
    items = found.items
    keys = [_key(row, "image", "text") for row in rows]
    texts, images = ([str(row.get(name) or "") for row in rows] for name in ("text", "image"))
    return only(
        *unusable(found.left_out, len(rows), _NO_IMAGE, "Name images from the folder of the rows; give each a text."),
        truncated(found.truncated / max(1, len(items))),
        unreadable([item.image for item in items]),
        unknown_tokens([item.ids for item in items], tokenizer),
        all_alike("one_text", texts, "Every row has the text", "Give texts that tell images apart."),
        all_alike("one_image", images, "Every row has the image", "Give rows of several images."),
        _few_texts(texts),
        repeated(keys, *_TWICE),
        leaked(keys, [_key(row, "image", "text") for row in validation]),
        half_leaked(
            "images_leaked",
            [_key(row, "image") for row in rows],
            [_key(row, "image") for row in validation],
            "an image",
        ),
    )


def _key(row: Row, *names: str) -> str:
    return key_of(*(str(row.get(name) or "") for name in names))


def _pair(row: Row) -> tuple[str, str]:
    return str(row.get("anchor") or row.get("query") or ""), str(row.get("positive") or "")


def _one_for_all(pairs: Sequence[tuple[str, str]]) -> list[Finding | None]:
    """One anchor, or one positive, for all rows: the others of a batch are then no negatives."""
    hint = "Give rows that differ on both sides."
    anchors, positives = ([pair[side] for pair in pairs] for side in (0, 1))
    return [
        all_alike("one_anchor", anchors, "Every row has the anchor", hint),
        all_alike("one_positive", positives, "Every row has the positive", hint),
    ]


def _equal(pairs: Sequence[tuple[str, str]]) -> Finding | None:
    """Positives that are their anchors: nearest already, whatever the model."""
    share = sum(key_of(anchor) == key_of(positive) for anchor, positive in pairs) / max(1, len(pairs))
    return lost(
        "same",
        share,
        f"In {share:.1%} of the rows anchor and positive are the same text.",
        "Give another text that belongs to the anchor, or leave these rows out.",
    )


def _own_negative(rows: Sequence[Row], pairs: Sequence[tuple[str, str]]) -> Finding | None:
    """Negatives that are the row's anchor, or a positive of the same anchor."""
    right: dict[str, set[str]] = {}
    for anchor, positive in pairs:
        right.setdefault(key_of(anchor), {key_of(anchor)}).add(key_of(positive))
    both = [
        str(negative)
        for row, (anchor, _) in zip(rows, pairs, strict=True)
        for negative in negatives_of(row)
        if key_of(str(negative)) in right[key_of(anchor)]
    ]
    return contradicted(both, len(rows), "have a negative that is a positive of the same anchor", "Take it out.")


def _scores(scores: Sequence[float | None], loss: str) -> list[Finding | None]:
    outside = [score for score in scores if score is not None and not -1.0 <= score <= 1.0]
    share = len(outside) / max(1, len(scores))
    found = all_alike("one_score", scores, "Every row has the score", "Give pairs that are more and less alike.")
    if not outside or loss != "cosine":
        return [found]
    beyond = Finding(
        code="score_range",
        refuses=True,
        share=share,
        message=f"{share:.0%} of the rows have a score that no cosine can be, such as {outside[0]:g}.",
        hint="Divide scores by their largest, or use loss: cosent, which reads their order alone.",
    )
    return [found, beyond]


def _endless(ends: bool) -> Finding | None:
    if ends:
        return None
    return Finding(
        code="never_ends",
        refuses=True,
        share=1.0,
        message="The model has no token that ends a target, so it would go on writing.",
        hint="Name eos_token in tokenizer_config.json.",
    )


def _copied(pairs: Sequence[tuple[str, str]]) -> Finding | None:
    """Targets that are their sources; of corrections some may be."""
    share = sum(source.strip() == target.strip() for source, target in pairs) / max(1, len(pairs))
    if share <= WARN_LEFT_OUT:
        return None
    return Finding(
        code="copied",
        refuses=share > _MOST_COPIED,
        share=share,
        message=f"In {share:.0%} of the rows the target is the source.",
        hint="Look at which columns are read; the model would learn to copy.",
    )


def _few_texts(texts: Sequence[str]) -> Finding | None:
    """Texts that many rows have: in a batch they are no negatives of each other."""
    share = 1.0 - len(set(texts)) / max(1, len(texts))
    if share <= 0.5:
        return None
    return Finding(
        code="few_texts",
        refuses=False,
        share=share,
        message=f"{share:.0%} of the rows have a text that another row has: a batch tells few of them apart.",
        hint="Give texts that say more, or use classify where they are labels.",
    )
