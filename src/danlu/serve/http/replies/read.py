"""Answers of a single pass: vectors, ranks, scores, labels and spans.

Knows nothing of requests or the engine.
"""

from __future__ import annotations

import base64
import secrets
import time
from array import array
from collections.abc import Sequence
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from danlu.core.records import Usage
from danlu.serve.engine.request import Reading
from danlu.serve.http.replies.shared import encode


class ReadUsage(Struct):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


def _usage(usage: Usage) -> ReadUsage:
    return ReadUsage(usage.prompt_tokens, usage.prompt_tokens)


class Embedding(Struct):
    """The vector of one text."""

    index: int
    embedding: Sequence[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingList(Struct):
    """The answer of /v1/embeddings."""

    data: list[Embedding]
    model: str
    usage: ReadUsage
    object: Literal["list"] = "list"


def embeddings(model: str, reading: Reading, dimensions: int | None, *, is_base64: bool) -> bytes:
    """The vectors, cut to ``dimensions`` and made of length 1 again where that was asked for."""
    row_bytes = reading.width * 4
    data: list[Embedding] = []
    for index, start in enumerate(range(0, len(reading.vectors), row_bytes)):
        row = reading.vectors[start : start + row_bytes]
        if dimensions is not None and dimensions < reading.width:
            row = _cut(row, dimensions)
        data.append(Embedding(index, base64.b64encode(row).decode() if is_base64 else array("f", row).tolist()))
    return encode(EmbeddingList(data, model, _usage(reading.usage)))


def _cut(row: bytes, dimensions: int) -> bytes:
    kept = array("f", row[: dimensions * 4])
    length = sum(x * x for x in kept) ** 0.5
    return array("f", [x / length for x in kept] if length else kept).tobytes()


class Document(Struct):
    """A document of a rerank request."""

    text: str


class Rank(Struct):
    """How well one document answers the query."""

    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class Ranking(Struct):
    """The answer of /v1/rerank, best first."""

    id: str
    model: str
    results: list[Rank]
    usage: ReadUsage


def ranking(model: str, reading: Reading, documents: Sequence[str] | None, top_n: int | None) -> bytes:
    """The ``top_n`` best; with their text where ``documents`` is given."""
    order = sorted(range(len(reading.scores)), key=lambda i: -reading.scores[i])[:top_n]
    results = [Rank(i, reading.scores[i], UNSET if documents is None else Document(documents[i])) for i in order]
    return encode(Ranking(f"rerank-{secrets.token_hex(12)}", model, results, _usage(reading.usage)))


class ScoreItem(Struct):
    """The score of one pair."""

    index: int
    score: float
    object: Literal["score"] = "score"


class LabelItem(Struct):
    """One text's likeliest label, and the probability of each in the order of ``labels``."""

    index: int
    label: str
    probs: list[float]
    num_classes: int
    labels: list[str]


class Span(Struct):
    """A stretch of a text and what it is; ``start`` and ``end`` count characters."""

    label: str
    start: int
    end: int
    score: float


class SpansItem(Struct):
    """The spans of one text."""

    index: int
    spans: list[Span]


class _List(Struct, kw_only=True):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    usage: ReadUsage


class ScoreList(_List, kw_only=True):
    """The answer of /v1/score."""

    data: list[ScoreItem]


class LabelList(_List, kw_only=True):
    """The answer of /v1/classify."""

    data: list[LabelItem]


class SpansList(_List, kw_only=True):
    """The answer of /v1/tag."""

    data: list[SpansItem]


def _head(prefix: str, model: str, usage: Usage) -> dict[str, Any]:
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model,
            "usage": _usage(usage)}  # fmt: skip


def scores(model: str, reading: Reading) -> bytes:
    """One score for each pair."""
    data = [ScoreItem(i, score) for i, score in enumerate(reading.scores)]
    return encode(ScoreList(data=data, **_head("score", model, reading.usage)))


def labels(model: str, reading: Reading, order: Sequence[str]) -> bytes:
    """Labels in vLLM's form: probabilities in the model's own ``order`` of labels."""
    data: list[LabelItem] = []
    for index, found in enumerate(reading.labels):
        by_label = dict(found)
        names = [name for name in order if name in by_label] or list(by_label)
        data.append(LabelItem(index, found[0][0], [by_label[name] for name in names], len(names), names))
    return encode(LabelList(data=data, **_head("classify", model, reading.usage)))


def spans(model: str, reading: Reading) -> bytes:
    """The spans of each text."""
    data = [SpansItem(i, [Span(*span) for span in found]) for i, found in enumerate(reading.spans)]
    return encode(SpansList(data=data, **_head("tag", model, reading.usage)))


class Prediction(Struct):
    """One text's likeliest label, and the probability of every label, the likeliest first."""

    label: str
    probabilities: dict[str, float]


class Predictions(Struct):
    """The answer of /predict to several texts, in their order."""

    model: str
    predictions: list[Prediction]


class OnePrediction(Struct):
    """The answer of /predict to one text."""

    model: str
    label: str
    probabilities: dict[str, float]


def predictions(model: str, reading: Reading, *, is_single: bool) -> bytes:
    """An object for one text, or one with a list for several."""
    found = [Prediction(labels[0][0], dict(labels)) for labels in reading.labels]
    if is_single:
        return encode(OnePrediction(model, found[0].label, found[0].probabilities))
    return encode(Predictions(model, found))
