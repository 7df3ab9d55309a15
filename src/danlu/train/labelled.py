"""Rows with labels as ids and targets: {text, label}, {text, text_pair, label}, {image, label}, {text, …, score}.

A label is a name or a number; a list of them where several may hold at once; a score, from 0 to 1, says how much is
true of a pair. Knows the head that labels are for, and no training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danlu.core.errors import DataError, TrainError
from danlu.models.encode import Row
from danlu.models.heads.classify import ClassifyHead
from danlu.models.model import Model
from danlu.models.pooling import Pooling
from danlu.models.rehead import NewClassifier, NewScorer
from danlu.train.texts import Encoded, encode_text, limit_of


@dataclass(frozen=True)
class Labelled:
    """One row to learn."""

    row: Row | Path
    """Ids and types, or an image file."""
    target: tuple[float, ...]
    """Share of each label that is true: one 1, several, or a score."""

    @property
    def num_tokens(self) -> int:
        """Tokens that are read; an image counts as one."""
        return 1 if isinstance(self.row, Path) else len(self.row[0])


def labels_of(
    rows: Iterable[Mapping[str, Any]], names: Sequence[str] = (), pooling: Pooling | None = None
) -> NewClassifier | NewScorer:
    """The head that rows ask for, unless its ``names`` are given: labels by name or number, several a row, or scores.

    Raises TrainError when there are not two labels.
    """
    found = set[str]()
    numbers, several, scores = True, False, False
    for row in rows:
        if row.get("label") is None:
            scores |= row.get("score") is not None
            continue
        several |= isinstance(row["label"], list)
        for label in _listed(row["label"]):
            found.add(str(label))
            numbers &= type(label) is int
    if scores and not found:
        return NewScorer(pooling=pooling)
    ordered = sorted(found, key=int) if numbers else sorted(found)
    if len(found) < 2 and not names:
        raise TrainError(f"The rows have {len(found)} different labels.", "Give rows of at least two, as label.")
    return NewClassifier(labels=tuple(names or ordered), pooling=pooling, multi_label=several)


def encode_rows(
    rows: Iterable[Mapping[str, Any]], model: Model, max_row_tokens: int | None = None, folder: Path = Path()
) -> Encoded[Labelled]:
    """Rows as ids and targets for the labels of the model's head; images are named from ``folder``.

    Left out: rows without text (``empty``), without a label (``no_label``), or with one that the head does not have
    (``unknown_label``). Raises TrainError when no row is left, DataError for a score that is none.
    """
    head, limit = classify_head(model), None
    encoded = Encoded[Labelled]()
    for row in rows:
        target = _target(row, head)
        if isinstance(target, str):
            encoded.left_out[target] += 1
        elif isinstance(row.get("image"), str):
            encoded.items.append(Labelled(folder / row["image"], target))
        elif not str(row.get("text") or "").strip():
            encoded.left_out["empty"] += 1
        else:
            limit = limit or limit_of(model, max_row_tokens)
            ids, is_cut = encode_text(model, row["text"], row.get("text_pair"), limit)
            encoded.truncated += is_cut
            encoded.items.append(Labelled(ids, target))
    return encoded.refuse_none(f"text and a label of {', '.join(head.config.labels[:8])}")


def classify_head(model: Model) -> ClassifyHead:
    """The model's head; raises TrainError when it is of another kind."""
    head = model.network.head
    if not isinstance(head, ClassifyHead):
        raise TrainError("This model has no classification head.", "Put one on: with_head(model, labels_of(rows, …)).")
    return head


def _listed(label: Any) -> list[Any]:
    return label if isinstance(label, list) else [label]


def _target(row: Mapping[str, Any], head: ClassifyHead) -> tuple[float, ...] | str:
    """What is true of a row, or why it cannot be learnt."""
    names = head.config.labels
    if len(names) == 1 and row.get("score") is not None:
        if not isinstance(row["score"], int | float) or not 0.0 <= row["score"] <= 1.0:
            raise DataError(f"A row has the score {row['score']!r}.", "Scores are numbers from 0 to 1.")
        return (float(row["score"]),)
    if row.get("label") is None:
        return "no_label"
    places = set[int]()
    for label in _listed(row["label"]):
        place = names.index(str(label)) if str(label) in names else label
        if not isinstance(place, int) or not 0 <= place < len(names):
            return "unknown_label"
        places.add(place)
    if not head.config.multi_label and len(places) != 1:
        return "several_labels"
    return tuple(float(index in places) for index in range(len(names)))


def balanced_weights(items: Sequence[Labelled], *, multi_label: bool) -> Tensor:
    """(C,) weights that make labels count the same (King & Zeng 2001): rows / (labels · rows of the label), or where
    labels are independent, rows without the label / rows with it."""
    counts = Counter[int]()
    for item in items:
        counts.update(index for index, share in enumerate(item.target) if share > 0.5)
    size = len(items[0].target)
    rows = [max(1, counts[index]) for index in range(size)]
    return torch.tensor([(len(items) - n) / n if multi_label else len(items) / (size * n) for n in rows])
