"""Rows of texts that belong together: {anchor, positive}, {query, positive, negatives: […]}, {anchor, positive, score}.

Texts are read as the sentence model will read them: its prompts before them, its limit, its case. Knows no training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from danlu.core.errors import DataError, TrainError
from danlu.models.encode import Row
from danlu.models.heads.embed import EmbedHead
from danlu.models.model import Model
from danlu.models.pooling import Pooling
from danlu.models.rehead import NewEmbedder, with_head
from danlu.models.sentence import SentenceConfig
from danlu.train.texts import Encoded, encode_text, limit_of

QUERY, PASSAGE = "query", "passage"
"""Names of the prompts before anchors and before what is looked for."""


@dataclass(frozen=True)
class Related:
    """One row to learn."""

    anchor: Row
    """Ids and types."""
    positive: Row
    """What belongs to it."""
    negatives: tuple[Row, ...] = ()
    """What does not, though it looks as if."""
    score: float | None = None
    """How alike both are, where rows say so."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """All texts."""
        return (self.anchor, self.positive, *self.negatives)

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(len(ids) for ids, _ in self.rows)


def sentence_model(
    model: Model,
    *,
    pooling: Pooling = "mean",
    normalise: bool = True,
    max_row_tokens: int | None = None,
    prompts: Mapping[str, str] | None = None,
    source: Path | None = None,
) -> Model:
    """A sentence model as it is, any other model with its hidden states pooled; limit and prompts are its own now."""
    made = model
    if model.sentence is None:
        made = with_head(model, NewEmbedder(pooling=pooling, normalise=normalise), source=source)
    sentence = made.sentence or SentenceConfig()
    limit = limit_of(made, max_row_tokens) if max_row_tokens is not None else sentence.max_tokens
    named = {**sentence.prompts, **(prompts or {})}
    made.sentence = replace(sentence, max_tokens=limit, prompts={name: text for name, text in named.items() if text})
    return made


def encode_rows(rows: Iterable[Mapping[str, Any]], model: Model, *, scored: bool = False) -> Encoded[Related]:
    """Rows as ids; with ``scored`` those that say how alike two texts are.

    Left out: rows with an empty text (``empty``), and without a score where it is needed (``no_score``). Raises
    TrainError when no row is left, DataError for a score that is no number.
    """
    sentence, encoded = _sentence(model), Encoded[Related]()
    limit = limit_of(model, None)
    before = {name: sentence.prompts.get(name, "") for name in (QUERY, PASSAGE)}

    def read(text: str, kind: str) -> Row:
        text = before[kind] + text.strip()
        row, is_cut = encode_text(model, text.lower() if sentence.lower_case else text, None, limit)
        encoded.truncated += is_cut
        return row

    for row in rows:
        anchor, positive = row.get("anchor") or row.get("query"), row.get("positive")
        negatives = negatives_of(row)
        score = row.get("score")
        if not all(isinstance(text, str) and text.strip() for text in (anchor, positive, *negatives)):
            encoded.left_out["empty"] += 1
        elif scored and score is None:
            encoded.left_out["no_score"] += 1
        elif scored and (isinstance(score, bool) or not isinstance(score, int | float)):
            raise DataError(f"A row has the score {score!r}.", "Scores are numbers.")
        else:
            others = tuple(read(text, PASSAGE) for text in negatives)
            pair = read(str(anchor), QUERY), read(str(positive), PASSAGE)
            encoded.items.append(Related(*pair, others, float(score) if scored and score is not None else None))
    return encoded.refuse_none("anchor (or query) and positive" + (", and score" if scored else ""))


def embed_head(model: Model) -> EmbedHead:
    """The model's head; raises TrainError when it is of another kind."""
    head = model.network.head
    if not isinstance(head, EmbedHead) or model.sentence is None:
        raise TrainError("This model gives no sentence vectors.", "Make it one: sentence_model(model).")
    return head


def places_of(items: Sequence[Related]) -> tuple[list[int], list[int], list[int]]:
    """Where the vectors of anchors, positives and all negatives are."""
    anchors, positives, negatives = list[int](), list[int](), list[int]()
    start = 0
    for item in items:
        anchors.append(start)
        positives.append(start + 1)
        negatives += range(start + 2, start + len(item.rows))
        start += len(item.rows)
    return anchors, positives, negatives


def keys_of(items: Sequence[Related], places: Sequence[int]) -> list[tuple[int, ...]]:
    """What tells equal texts: their ids."""
    rows = [row for item in items for row in item.rows]
    return [tuple(rows[place][0]) for place in places]


def negatives_of(row: Mapping[str, Any]) -> Sequence[Any]:
    """A row's ``negative``, ``negatives``, and ``negative_1`` … as sentence-transformers numbers them."""
    several = row.get("negatives") or []
    one = [row[name] for name in row if name == "negative" or name.startswith("negative_")]
    return [*one, *(several if isinstance(several, list) else [several])]


def _sentence(model: Model) -> SentenceConfig:
    embed_head(model)
    return model.sentence or SentenceConfig()
