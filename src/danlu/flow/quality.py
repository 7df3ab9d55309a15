"""What evaluations measured, as the report's quality table, differences and samples.

Knows nothing of pages or other sections; it reads metrics.json, samples.jsonl and comparison.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from danlu.core.files import read_json, read_jsonl
from danlu.flow.charts import range_mark
from danlu.lineage.store import Artifact, Store

_HIGHER_IS_BETTER = ("bleu4", "chrf", "coverage", "accuracy", "f1", "items_per_s", "output_tokens_per_s")
_LOWER_IS_BETTER = ("invention", "size_bytes", "perplexity", "loss")
_SHARES = ("coverage", "invention", "accuracy")
_NOT_QUALITY = ("items", "output_tokens_per_item", "seconds")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One metric of one model."""

    text: str = "–"
    interval: str = ""
    mark: str = ""
    is_best: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric of all models."""

    name: str
    direction: str
    """``higher``, ``lower`` (is better), or nothing known."""
    cells: Sequence[Cell]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How one metric of one model differs from another model's."""

    name: str
    change: str
    interval: str
    p: str
    """Chance that the better direction is luck: one-sided, paired bootstrap."""
    is_sure: bool


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt and what each model answered."""

    prompt: str
    reference: str
    outputs: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one evaluation measured."""

    metrics: Mapping[str, Any]
    samples: Mapping[str, Mapping[str, Any]]


def read_evaluation(artifact: Artifact) -> Evaluation | None:
    """An artifact of that kind with a metrics.json; samples are optional."""
    metrics = read_json(artifact.path / "metrics.json") if (artifact.path / "metrics.json").is_file() else None
    if artifact.manifest.kind != "evaluation" or not isinstance(metrics, dict):
        return None
    rows = read_jsonl(artifact.path / "samples.jsonl") if (artifact.path / "samples.jsonl").is_file() else ()
    return Evaluation(
        metrics={**cast("dict[str, Any]", metrics), **artifact.manifest.metrics},
        samples={str(row.get("id")): row for row in rows},
    )


def metric_rows(evaluations: Mapping[str, Evaluation]) -> list[Row]:
    names: dict[str, None] = {}
    for evaluation in evaluations.values():
        names.update(dict.fromkeys(n for n in evaluation.metrics if n not in _NOT_QUALITY))
    rows = [_metric_row(name, [e.metrics.get(name) for e in evaluations.values()]) for name in names]
    return [row for row in rows if row is not None]


def _metric_row(name: str, metrics: Sequence[Any]) -> Row | None:
    values = [plain_value(metric) for metric in metrics]
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    direction = "lower" if name in _LOWER_IS_BETTER else "higher" if name in _HIGHER_IS_BETTER else ""
    best = min(numbers) if direction == "lower" else max(numbers)
    is_told_apart = bool(direction) and min(numbers) != max(numbers)
    spans = [_interval(metric) for metric in metrics]
    ends = [end for span in spans if span for end in span]
    bounds = (min(ends), max(ends)) if ends else (0.0, 1.0)
    cells: list[Cell] = []
    for value, span in zip(values, spans, strict=True):
        if value is None:
            cells.append(Cell())
            continue
        cells.append(
            Cell(
                text=format_metric(name, value),
                interval=f"{format_metric(name, span[0])} – {format_metric(name, span[1])}" if span else "",
                mark=range_mark(value, span[0], span[1], bounds) if span else "",
                is_best=is_told_apart and (span[0] <= best <= span[1] if span else value == best),
            )
        )
    return Row(name=name, direction=direction, cells=cells)


def pick_samples(evaluations: Mapping[str, Evaluation], most: int) -> list[Sample]:
    """Prompts that every model with samples answered, spread evenly over them."""
    having = {name: e.samples for name, e in evaluations.items() if e.samples}
    if not having:
        return []
    first = next(iter(having.values()))
    common = [key for key in first if all(key in samples for samples in having.values())]
    step = max(1, len(common) // max(1, most))
    return [
        Sample(
            prompt=_prompt_text(first[key].get("prompt", "")),
            reference=str(first[key].get("reference", "")),
            outputs={name: str(samples[key].get("output", "")) for name, samples in having.items()},
        )
        for key in common[::step][:most]
    ]


def read_signatures(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """How each metric was computed, of the first evaluation that says so."""
    for evaluation in evaluations.values():
        found = evaluation.metrics.get("signatures")
        if isinstance(found, dict):
            return [f"{name}: {text}" for name, text in cast("dict[str, Any]", found).items() if isinstance(text, str)]
    return []


def read_comparisons(store: Store, inputs: Mapping[str, Artifact]) -> dict[str, list[Difference]]:
    """ "baseline → candidate" to the differences, for every input with a comparison.json."""
    columns = {artifact.id: name for name, artifact in inputs.items()}
    found: dict[str, list[Difference]] = {}
    for name, artifact in inputs.items():
        path = artifact.path / "comparison.json"
        compared = read_json(path) if path.is_file() else None
        if not isinstance(compared, dict):
            continue
        sources = artifact.manifest.origin.inputs
        names = [columns.get(i) or store.get(i).manifest.name for i in map(sources.get, ("baseline", "candidate")) if i]
        metrics = cast("dict[str, dict[str, Any]]", compared)
        found[" → ".join(names) or name] = [_difference(metric, values) for metric, values in metrics.items()]
    return found


def _difference(name: str, values: Mapping[str, Any]) -> Difference:
    p = min((float(values[key]) for key in ("p_higher", "p_lower") if key in values), default=1.0)
    low, high, change = (float(values[key]) for key in ("low", "high", "difference"))
    return Difference(
        name=name,
        change=_signed(name, change),
        interval=f"{_signed(name, low)} … {_signed(name, high)}",
        p=f"{p:.3f}" if p >= 0.001 else "< 0.001",
        is_sure=p < 0.05,
    )


def _interval(metric: Any) -> tuple[float, float] | None:
    if not isinstance(metric, dict):
        return None
    low, high = (plain_value(cast("dict[str, Any]", metric).get(end)) for end in ("low", "high"))
    return (low, high) if low is not None and high is not None else None


def plain_value(metric: Any) -> float | None:
    found = cast("dict[str, Any]", metric).get("value") if isinstance(metric, dict) else metric
    if not isinstance(found, (int, float)) or isinstance(found, bool):
        return None
    return float(found) if math.isfinite(found) else None


def _prompt_text(prompt: Any) -> str:
    """A conversation as its last message; the ones before it are the same in every sample."""
    if isinstance(prompt, list) and prompt:
        last = cast("list[Any]", prompt)[-1]
        return str(cast("dict[str, Any]", last).get("content", "")) if isinstance(last, dict) else str(last)
    return str(prompt)


def _signed(name: str, value: float) -> str:
    return ("+" if value > 0 else "−" if value < 0 else "") + format_metric(name, abs(value))


def format_metric(name: str, value: float) -> str:
    """A metric as people write it: shares in per cent, bytes in MB."""
    if name in _SHARES and abs(value) <= 1:
        return f"{value:.1%}"
    if name.endswith("_bytes"):
        return f"{value / 1e6:,.1f} MB"
    if value == int(value) and abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:,.2f}" if abs(value) >= 1 else f"{value:.3g}"
