"""One self-contained HTML report of what a recipe made, gathered from artifacts by what they hold.

    rows_in, rows_kept, dropped in card.json or metrics    the data section
    log.jsonl                                              the loss curve
    metrics.json and samples.jsonl                         one column of the quality table, one of the samples
    comparison.json                                        differences and how sure they are

A piece that no input has is left out. Knows nothing of how any of them was made.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from danlu.core.files import read_json, read_jsonl
from danlu.flow.charts import Series, bar_mark, line_chart, range_mark, smooth
from danlu.flow.words import WORDS, Language, describe_host, duration, headline
from danlu.lineage.manifest import Manifest
from danlu.lineage.runs import RunRecord
from danlu.lineage.store import Artifact, Store

_HIGHER_IS_BETTER = ("bleu4", "chrf", "coverage", "accuracy", "f1", "items_per_s", "output_tokens_per_s")
_LOWER_IS_BETTER = ("invention", "size_bytes", "perplexity", "loss")
_SHARES = ("coverage", "invention", "accuracy")
_NOT_QUALITY = ("items", "output_tokens_per_item", "seconds")


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    note: str = ""


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
class Bar:
    """One line of a bar chart."""

    name: str
    text: str
    mark: Markup
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt and what each model answered."""

    prompt: str
    reference: str
    outputs: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Node:
    """One artifact in the lineage tree."""

    role: str
    manifest: Manifest
    children: Sequence[Node]
    is_repeat: bool
    origin: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one evaluation, or a peer's run, measured."""

    kind: str
    metrics: Mapping[str, Any]
    samples: Mapping[str, Mapping[str, Any]]


def render_report(
    store: Store,
    inputs: Mapping[str, Artifact],
    *,
    title: str = "",
    language: Language = "en",
    num_samples: int = 6,
    run: RunRecord | None = None,
) -> str:
    """The report as HTML; ``inputs`` in the order their columns shall have."""
    words = WORDS[language]
    evaluations = {name: e for name, a in inputs.items() if (e := _read_evaluation(a)) is not None}
    logs = {name: list(read_jsonl(a.path / "log.jsonl")) for name, a in inputs.items() if _has(a.path, "log.jsonl")}
    data = next((d for a in inputs.values() if (d := _read_data(a)) is not None), None)
    stages = _ancestry(store, inputs.values())
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        words=words,
        language=language,
        title=title or (run.recipe if run else "danlu"),
        run=run,
        command=f"danlu run {shlex.join((run.path, *run.overrides))}" if run else "",
        tiles=[*_quality_tiles(evaluations, words), *_data_tiles(data, words), *_cost_tiles(stages, words)],
        curves={name: chart for name, log in logs.items() if (chart := _loss_chart(log, words))},
        data=data,
        drops=_drop_bars(data),
        columns=list(evaluations),
        rows=_metric_rows(evaluations),
        num_items=max((int(_value(e.metrics.get("items")) or 0) for e in evaluations.values()), default=0),
        signatures=_signatures(evaluations),
        comparisons=_comparisons(store, inputs),
        samples=_samples(evaluations, num_samples),
        stages=stages,
        stage_bars=_stage_bars(stages),
        total_wh=sum(m.cost.energy.value_wh for m in stages),
        total_gco2=sum(m.cost.energy.gco2 for m in stages),
        trees=_trees(store, inputs),
        host=describe_host(stages[-1].host) if stages else "",
        code=stages[-1].code if stages else None,
        duration=duration,
        headline=headline,
    )


# what the artifacts hold


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _read_evaluation(artifact: Artifact) -> Evaluation | None:
    """An artifact with a metrics.json is one; samples are optional."""
    metrics = read_json(artifact.path / "metrics.json") if _has(artifact.path, "metrics.json") else None
    if not isinstance(metrics, dict):
        return None
    rows = read_jsonl(artifact.path / "samples.jsonl") if _has(artifact.path, "samples.jsonl") else ()
    return Evaluation(
        kind=artifact.manifest.kind,
        metrics={**cast("dict[str, Any]", metrics), **artifact.manifest.metrics},
        samples={str(row.get("id")): row for row in rows},
    )


def _read_data(artifact: Artifact) -> dict[str, Any] | None:
    """Row counts of a data artifact, from its card or its metrics."""
    card = read_json(artifact.path / "card.json") if _has(artifact.path, "card.json") else {}
    found = {**artifact.manifest.metrics, **(card if isinstance(card, dict) else {})}
    if not {"rows_in", "rows_kept"} <= found.keys():
        return None
    return {"dropped": {}, **found}


def _ancestry(store: Store, artifacts: Any) -> list[Manifest]:
    """Manifests of the artifacts and all they were made from, sources first, each once."""
    ordered: dict[str, Manifest] = {}

    def visit(manifest: Manifest) -> None:
        if manifest.id not in ordered:
            for identifier in manifest.origin.inputs.values():
                visit(store.get(identifier).manifest)
            ordered[manifest.id] = manifest

    for artifact in artifacts:
        visit(artifact.manifest)
    return list(ordered.values())


# sections


def _quality_tiles(evaluations: Mapping[str, Evaluation], words: Mapping[str, str]) -> list[Tile]:
    """Of each interesting number the first model's and the last one's that have it; peers' numbers are no headline."""
    own = {column: e for column, e in evaluations.items() if e.kind == "evaluation"}
    tiles: list[Tile] = []
    for name in ("bleu4", "coverage", "items_per_s", "size_bytes"):
        having = [(column, v) for column, e in own.items() if (v := _value(e.metrics.get(name))) is not None]
        if not having:
            continue
        (first_name, first), (last_name, last) = having[0], having[-1]
        value, note = format_metric(name, last), last_name
        if len(having) > 1:
            change = f"{last / first:.2f}×" if first > 0 else ""
            note = f"{first_name} {format_metric(name, first)} → {last_name}" + (f" ({change})" if change else "")
        tiles.append(Tile(label=words.get(name, name), value=value, note=note))
    return tiles


def _data_tiles(data: Mapping[str, Any] | None, words: Mapping[str, str]) -> list[Tile]:
    if data is None:
        return []
    share = data["rows_kept"] / data["rows_in"] if data["rows_in"] else 0.0
    return [Tile(label=words["rows"], value=f"{data['rows_kept']:,}", note=f"{share:.0%} / {data['rows_in']:,}")]


def _cost_tiles(stages: Sequence[Manifest], words: Mapping[str, str]) -> list[Tile]:
    if not stages:
        return []
    energy = [m.cost.energy for m in stages]
    note = f"{sum(e.gco2 for e in energy):.3g} g CO₂e · {', '.join(sorted({words[e.method] for e in energy}))}"
    return [
        Tile(label=words["time"], value=duration(sum(m.cost.seconds for m in stages))),
        Tile(label=words["energy"], value=f"{sum(e.value_wh for e in energy):.3g} Wh", note=note),
    ]


def _loss_chart(log: Sequence[Mapping[str, Any]], words: Mapping[str, str]) -> Markup:
    def points(key: str) -> list[tuple[float, float]]:
        kept = [line for line in log if "step" in line and line.get(key) is not None]
        found = [(float(line["step"]), float(line[key])) for line in kept]
        return [(x, y) for x, y in found if math.isfinite(y)]

    train, validation = points("loss"), points("validation_loss")
    smoothed = smooth(train, half_life=max(1.0, len(train) / 80))
    return line_chart(
        [
            Series(name="", points=train if len(train) > 20 else (), style="line-faint"),
            Series(name=words["train"], points=smoothed, style="line-main"),
            Series(name=words["validation"], points=validation, style="line-second", has_dots=len(validation) <= 60),
        ],
        words["step"],
        words["loss"],
    )


def _drop_bars(data: Mapping[str, Any] | None) -> list[Bar]:
    if data is None:
        return []
    dropped = sorted(cast("dict[str, int]", data["dropped"]).items(), key=lambda item: -item[1])
    most = max((count for _, count in dropped), default=1) or 1
    return [
        Bar(
            name=reason.replace("_", " "),
            text=f"{count:,}",
            mark=bar_mark(count / most),
            note=f"{count / data['rows_in']:.1%}" if data["rows_in"] else "",
        )
        for reason, count in dropped
    ]


def _metric_rows(evaluations: Mapping[str, Evaluation]) -> list[Row]:
    names: dict[str, None] = {}
    for evaluation in evaluations.values():
        names.update(dict.fromkeys(n for n in evaluation.metrics if n not in _NOT_QUALITY))
    rows = [_metric_row(name, [e.metrics.get(name) for e in evaluations.values()]) for name in names]
    return [row for row in rows if row is not None]


def _metric_row(name: str, metrics: Sequence[Any]) -> Row | None:
    values = [_value(metric) for metric in metrics]
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


def _value(metric: Any) -> float | None:
    found = cast("dict[str, Any]", metric).get("value") if isinstance(metric, dict) else metric
    if not isinstance(found, (int, float)) or isinstance(found, bool):
        return None
    return float(found) if math.isfinite(found) else None


def _interval(metric: Any) -> tuple[float, float] | None:
    if not isinstance(metric, dict):
        return None
    low, high = (_value(cast("dict[str, Any]", metric).get(end)) for end in ("low", "high"))
    return (low, high) if low is not None and high is not None else None


def _samples(evaluations: Mapping[str, Evaluation], most: int) -> list[Sample]:
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


def _prompt_text(prompt: Any) -> str:
    """A conversation as its last message; the ones before it are the same in every sample."""
    if isinstance(prompt, list) and prompt:
        last = cast("list[Any]", prompt)[-1]
        return str(cast("dict[str, Any]", last).get("content", "")) if isinstance(last, dict) else str(last)
    return str(prompt)


def _signatures(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """How each metric was computed, of the first evaluation that says so."""
    for evaluation in evaluations.values():
        found = evaluation.metrics.get("signatures")
        if isinstance(found, dict):
            return [f"{name}: {text}" for name, text in cast("dict[str, Any]", found).items() if isinstance(text, str)]
    return []


def _comparisons(store: Store, inputs: Mapping[str, Artifact]) -> dict[str, list[Difference]]:
    """ "baseline → candidate" to the differences, for every input with a comparison.json."""
    columns = {artifact.id: name for name, artifact in inputs.items()}
    found: dict[str, list[Difference]] = {}
    for name, artifact in inputs.items():
        compared = read_json(artifact.path / "comparison.json") if _has(artifact.path, "comparison.json") else None
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


def _signed(name: str, value: float) -> str:
    return ("+" if value > 0 else "−" if value < 0 else "") + format_metric(name, abs(value))


def _stage_bars(stages: Sequence[Manifest]) -> list[Markup]:
    longest = max((m.cost.seconds for m in stages), default=0.0) or 1.0
    return [bar_mark(m.cost.seconds / longest, "second") for m in stages]


def _trees(store: Store, inputs: Mapping[str, Artifact]) -> list[Node]:
    """One tree an input, but no tree that another one contains."""
    seen: set[str] = set()

    def grow(role: str, manifest: Manifest) -> Node:
        is_repeat = manifest.id in seen
        seen.add(manifest.id)
        children = manifest.origin.inputs.items() if not is_repeat else ()
        config = manifest.origin.config
        origin = " ".join(str(config[k]) for k in ("package", "version", "member", "path") if config.get(k))
        return Node(
            role=role,
            manifest=manifest,
            children=[grow(name, store.get(identifier).manifest) for name, identifier in children],
            is_repeat=is_repeat and bool(manifest.origin.inputs),
            origin="" if manifest.origin.inputs else origin,
        )

    below = {identifier for m in _ancestry(store, inputs.values()) for identifier in m.origin.inputs.values()}
    return [grow(name, artifact.manifest) for name, artifact in inputs.items() if artifact.id not in below]


# words for numbers


def format_metric(name: str, value: float) -> str:
    """A metric as people write it: shares in per cent, bytes in MB."""
    if name in _SHARES and abs(value) <= 1:
        return f"{value:.1%}"
    if name.endswith("_bytes"):
        return f"{value / 1e6:,.1f} MB"
    if value == int(value) and abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:,.2f}" if abs(value) >= 1 else f"{value:.3g}"
