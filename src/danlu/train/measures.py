"""What validation counts: labels hit, entities found, answers ranked first. Plain numbers in and out, no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Entity = tuple[str, int, int]
"""Label, first word, word after the last."""

OUTSIDE = "O"
"""The tag of words in no entity."""
_BEGINS, _ENDS = frozenset("BSU"), frozenset("ELSU")
_PREFIXES = _BEGINS | _ENDS | {"I", "M"}


def label_scores(gold: np.ndarray, guessed: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Indices of labels, (B,) each → accuracy, macro-F1 and the scores of each label, 0 to 1.

    Macro-F1 is the mean over labels that occur in either (Sebastiani 2002, section 7.1).
    """
    chosen = np.eye(len(labels), dtype=bool)
    per_label = _per_label(chosen[gold], chosen[guessed], labels)
    return {
        "accuracy": float((gold == guessed).mean()),
        "macro_f1": _macro(per_label, set(gold) | set(guessed), labels),
        "per_label": per_label,
    }


def set_scores(gold: np.ndarray, guessed: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Several labels a row, bool (B, C) each → share of rows with the very set, micro- and macro-F1, each label's."""
    per_label = _per_label(gold, guessed, labels)
    occurs = {index for index in range(len(labels)) if gold[:, index].any() or guessed[:, index].any()}
    return {
        "accuracy": float((gold == guessed).all(axis=1).mean()),
        "micro_f1": f1(int((gold & guessed).sum()), int(guessed.sum()), int(gold.sum())),
        "macro_f1": _macro(per_label, occurs, labels),
        "per_label": per_label,
    }


def _per_label(gold: np.ndarray, guessed: np.ndarray, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    hits, said, true = (gold & guessed).sum(axis=0), guessed.sum(axis=0), gold.sum(axis=0)
    return {
        label: {
            "precision": _share(int(hits[i]), int(said[i])),
            "recall": _share(int(hits[i]), int(true[i])),
            "f1": f1(int(hits[i]), int(said[i]), int(true[i])),
            "rows": int(true[i]),
        }
        for i, label in enumerate(labels)
    }


def _macro(per_label: dict[str, dict[str, float]], occurs: set[int], labels: Sequence[str]) -> float:
    return float(np.mean([per_label[labels[index]]["f1"] for index in occurs])) if occurs else 0.0


def f1(hits: int, said: int, true: int) -> float:
    """Harmonic mean of hits / said and hits / true; 0 where there is nothing to hit."""
    return _share(2 * hits, said + true)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def entities(tags: Sequence[str]) -> list[Entity]:
    """Entities of one row of tags, in the lenient reading of CoNLL's scorer (Tjong Kim Sang & Buchholz 2000).

    B- (S-, U-) begins one, E- (L-, S-, U-) ends one; any other tag goes on with an entity of its label or begins one.
    """
    found: list[Entity] = []
    is_open = False
    for place, tag in enumerate(tags):
        prefix, dash, label = tag.partition("-")
        if not dash or prefix not in _PREFIXES:  # a tag without a prefix goes on where it can
            prefix, label = "I", tag
        if label == OUTSIDE:
            is_open = False
            continue
        if is_open and prefix not in _BEGINS and found[-1][0] == label:
            found[-1] = (label, found[-1][1], place + 1)
        else:
            found.append((label, place, place + 1))
        is_open = prefix not in _ENDS
    return found


def entity_scores(gold: Sequence[Sequence[str]], guessed: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Rows of tags → precision, recall and F1 of entities, found when label, begin and end are right; by label too."""
    true = [{(row, *entity) for entity in entities(tags)} for row, tags in enumerate(gold)]
    said = [{(row, *entity) for entity in entities(tags)} for row, tags in enumerate(guessed)]
    all_true, all_said = set[tuple[int, str, int, int]]().union(*true), set[tuple[int, str, int, int]]().union(*said)

    def scores(label: str | None) -> dict[str, Any]:
        mine, theirs = ({e for e in found if label in (None, e[1])} for found in (all_true, all_said))
        hits = len(mine & theirs)
        return {
            "precision": _share(hits, len(theirs)),
            "recall": _share(hits, len(mine)),
            "f1": f1(hits, len(theirs), len(mine)),
            "entities": len(mine),
        }

    return {**scores(None), "per_label": {label: scores(label) for label in sorted({e[1] for e in all_true})}}


def rank_scores(ranks: Sequence[int], tops: Sequence[int] = (1, 10)) -> dict[str, float]:
    """Rank of each query's first right answer, from 1 → recall at ``tops`` and the mean reciprocal rank."""
    places = np.asarray(ranks, dtype=np.float64)
    return {
        **{f"recall_at_{top}": float((places <= top).mean()) for top in tops},
        "mrr": float((1.0 / places).mean()),
    }


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's ρ, equal values sharing their mean rank; 0 when one side is constant."""
    one, other = (_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second))
    spread = float(one.std() * other.std())
    return float(((one - one.mean()) * (other - other.mean())).mean() / spread) if spread else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ends = sizes.cumsum()
    return ((ends - sizes + ends - 1) / 2)[group]
