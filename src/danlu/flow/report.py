"""One self-contained HTML report of what a recipe made, gathered from artifacts by what they hold.

    rows_in, rows_kept, dropped in card.json or metrics    the data section
    log.jsonl                                              the loss curve
    metrics.json and samples.jsonl of an evaluation        one column of the quality table, one of the samples
    metrics of a script                                    a peer's figures
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
from danlu.flow.charts import Series, bar_mark, line_chart, smooth
from danlu.flow.quality import (
    Evaluation,
    format_metric,
    metric_rows,
    pick_samples,
    plain_value,
    read_comparisons,
    read_evaluation,
    read_signatures,
)
from danlu.flow.words import WORDS, Language, describe_host, duration, headline
from danlu.lineage.manifest import Manifest
from danlu.lineage.runs import RunRecord
from danlu.lineage.store import Artifact, Store


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One line of a bar chart."""

    name: str
    text: str
    mark: Markup
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One artifact in the lineage tree."""

    role: str
    manifest: Manifest
    children: Sequence[Node]
    is_repeat: bool
    origin: str


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
    evaluations = {name: e for name, a in inputs.items() if (e := read_evaluation(a)) is not None}
    logs = {name: list(read_jsonl(a.path / "log.jsonl")) for name, a in inputs.items() if _has(a.path, "log.jsonl")}
    data = next((d for a in inputs.values() if (d := _read_data(a)) is not None), None)
    stages = _ancestry(store, inputs.values())
    peers = {name: _peer_lines(a.manifest.metrics) for name, a in inputs.items() if a.manifest.kind == "script"}
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        style=page_style(),
        words=words,
        language=language,
        title=title or (run.recipe if run else "danlu"),
        run=run,
        command=f"danlu run {shlex.join((run.path, *run.overrides))}" if run else "",
        tiles=[
            *_quality_tiles(evaluations, words),
            *_speedup_tiles(inputs, words),
            *_data_tiles(data, words),
            *_cost_tiles(stages, words),
        ],
        curves={name: chart for name, log in logs.items() if (chart := _loss_chart(log, words))},
        data=data,
        drops=_drop_bars(data),
        columns=list(evaluations),
        rows=metric_rows(evaluations),
        num_items=max((int(plain_value(e.metrics.get("items")) or 0) for e in evaluations.values()), default=0),
        signatures=read_signatures(evaluations),
        comparisons=read_comparisons(store, inputs),
        peers=peers,
        samples=pick_samples(evaluations, num_samples),
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


def page_style() -> Markup:
    """The CSS of every report."""
    return Markup(Path(__file__).with_name("page.css").read_text(encoding="utf-8"))


# what the artifacts hold


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


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
    """Of each interesting number the first model's and the last one's that have it."""
    tiles: list[Tile] = []
    for name in ("bleu4", "coverage", "items_per_s", "size_bytes"):
        values = {column: plain_value(e.metrics.get(name)) for column, e in evaluations.items()}
        having = [(column, value) for column, value in values.items() if value is not None]
        if not having:
            continue
        (first_name, first), (last_name, last) = having[0], having[-1]
        value, note = format_metric(name, last), last_name
        if len(having) > 1:
            change = f"{last / first:.2f}×" if first > 0 else ""
            note = f"{first_name} {format_metric(name, first)} → {last_name}" + (f" ({change})" if change else "")
        tiles.append(Tile(label=words.get(name, name), value=value, note=note))
    return tiles


def _speedup_tiles(inputs: Mapping[str, Artifact], words: Mapping[str, str]) -> list[Tile]:
    """Of each ``speedup_vs_PEER`` that a script measured."""
    found = [item for a in inputs.values() if a.manifest.kind == "script" for item in a.manifest.metrics.items()]
    return [
        Tile(label=words["speedup"], value=f"{value:.1f}×", note=name.removeprefix("speedup_vs_"))
        for name, value in found
        if name.startswith("speedup_vs_") and plain_value(value) is not None
    ]


def _peer_lines(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Name and value of every number and word, those of inner mappings under "outer, inner"."""
    lines: list[tuple[str, str]] = []
    for key, value in metrics.items():
        name = prefix + key.replace("_", " ")
        if isinstance(value, dict):
            lines += _peer_lines(cast("dict[str, Any]", value), f"{name}, ")
        elif (number := plain_value(value)) is not None:
            lines.append((name, format_metric(key, number)))
        elif isinstance(value, str):
            lines.append((name, value))
    return lines


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
