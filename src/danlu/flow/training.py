"""What recipe stages that train have in common: where a run works, and the report it leaves beside its artifact."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from danlu.core.config import to_mapping
from danlu.core.files import read_jsonl
from danlu.flow.charts import Series, line_chart, smooth
from danlu.flow.recipe import RecipeStage
from danlu.flow.report import Tile, page_style
from danlu.flow.team import TEAM
from danlu.flow.words import duration
from danlu.lineage.energy import EnergyMeter
from danlu.lineage.manifest import Energy
from danlu.lineage.stage import StageContext

if TYPE_CHECKING:
    from danlu.models.model import Model
    from danlu.train.method import MethodConfig
    from danlu.train.settings import Job, RunConfig

C = TypeVar("C", bound="RunConfig", contravariant=True)
LOG = "log.jsonl"
"""The curve, beside the artifact's own files."""
REPORT = "training.html"
"""The report, too."""


class TrainingStage(RecipeStage[C]):
    """A recipe stage that trains, maybe in several processes together."""

    kind = "model"
    trains = True

    def settle(self, config: C) -> Any:
        from danlu.train.settings import settle

        return settle(config)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart of the report."""

    title: str
    help: str
    svg: Markup


class Training:
    """One training stage at work: gives the job, and writes the report at the end."""

    def __init__(self, context: StageContext, title: str, config: Any) -> None:
        self._context, self._title, self._config = context, title, config
        self._meter, self._started = EnergyMeter(), time.perf_counter()

    @property
    def job(self) -> Job:
        """Where the run does its work."""
        from danlu.train.settings import Job
        from danlu.train.world import World

        context = self._context
        return Job(
            work=context.work,
            log_path=context.output / LOG,
            events=context.events,
            seed=context.seed,
            world=TEAM.get() or World(),
        )

    def save(self, model: Model, config: MethodConfig, base: str) -> None:
        """Write what was trained into the artifact: once, however many processes there are."""
        from danlu.train.method import save_trained

        if self.job.world.is_first:
            save_trained(model, config, self._context.output, base=base)

    def finish(self, metrics: Mapping[str, Any], findings: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """Write the report; returns the metrics with the audit's findings in them."""
        world = TEAM.get()
        if world is not None and not world.is_first:
            return dict(metrics)
        lines = list(read_jsonl(self._context.output / LOG))
        shown = {**metrics, "seconds": round(time.perf_counter() - self._started, 1)}
        page = render(self._title, lines, shown, to_mapping(self._config), self._meter.stop(), findings)
        (self._context.output / REPORT).write_text(page, encoding="utf-8")
        return {**metrics, "audit": list(findings)}


def render(
    title: str,
    lines: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
    config: Mapping[str, Any],
    energy: Energy,
    findings: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The report of one run as HTML; ``lines`` are its curve."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = environment.from_string(Path(__file__).with_name("training.html.j2").read_text(encoding="utf-8"))
    return template.render(
        style=page_style(),
        title=title,
        tiles=_tiles(lines, metrics, energy),
        charts=[chart for chart in _charts(lines) if chart.svg],
        findings=findings,
        samples=_samples(lines),
        numbers=[(name.replace("_", " "), _text(value)) for name, value in metrics.items()],
        settings=json.dumps(config, ensure_ascii=False, indent=2),
        energy=(
            "measured by the processor's own counters"
            if energy.method == "measured"
            else "estimated from busy core-seconds"
        )
        + f", {energy.grid_kg_per_kwh} kg of CO2 equivalent per kWh assumed",
    )


def _samples(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was written on the way: for each prompt what was wanted and a text for each step."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        if "sample" in line:
            asked = re.sub(r"\n{2,}", "\n", line["prompt"].strip())
            one = found.setdefault(asked, {"prompt": asked, "wanted": line["wanted"].strip(), "texts": []})
            one["texts"].append((line["step"], line["sample"].strip()))
    return list(found.values())


def _tiles(lines: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any], energy: Energy) -> list[Tile]:
    tiles: list[Tile] = []
    losses = [line["loss"] for line in lines if "loss" in line]
    if losses:
        tiles.append(Tile(label="loss", value=f"{losses[-1]:.3f}", note=f"from {losses[0]:.3f}"))
    validation = [line for line in lines if "validation_loss" in line]
    if validation:
        best = min(validation, key=lambda line: line["validation_loss"])
        last = validation[-1]["validation_loss"]
        tiles.append(Tile(label="validation loss", value=f"{last:.3f}", note=f"best at step {best['step']}"))
    if speed := metrics.get("train_tokens_per_s"):
        share = f"{metrics['peak_share']:.0%} of this machine's peak" if "peak_share" in metrics else ""
        tiles.append(Tile(label="tokens a second", value=f"{speed:,.0f}", note=share))
    note = f"{energy.gco2:.3g} g CO2e · {energy.method}"
    tiles.append(Tile(label="energy", value=f"{energy.value_wh:.3g} Wh", note=note))
    if "seconds" in metrics:
        tiles.append(Tile(label="time", value=duration(metrics["seconds"]), note="since it was last started"))
    return tiles


def _charts(lines: Sequence[Mapping[str, Any]]) -> list[Chart]:
    return [
        Chart(title="Loss", help="Smoothed; the pale line is each step.", svg=_chart(lines, "loss", "validation_loss")),
        Chart(
            title="Gradient norm",
            help="Before clipping. A steady rise, or peaks far above the rest, ask for a lower learning rate.",
            svg=_chart(lines, "grad_norm"),
        ),
        Chart(title="Learning rate", help="What the schedule gave each step.", svg=_chart(lines, "lr", smooths=False)),
    ]


def _chart(lines: Sequence[Mapping[str, Any]], key: str, second: str = "", *, smooths: bool = True) -> Markup:
    points, other = _points(lines, key), _points(lines, second)
    main = smooth(points, half_life=max(1.0, len(points) / 80)) if smooths else points
    name = "training" if second else ""
    series = [
        Series(name="", points=points if smooths and len(points) > 20 else (), style="line-faint"),
        Series(name=name, points=main, style="line-main"),
        Series(name="validation", points=other, style="line-second", has_dots=len(other) <= 60),
    ]
    return line_chart(series, "step", "")


def _points(lines: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    found = [(float(line["step"]), float(line[key])) for line in lines if line.get(key) is not None]
    return [(x, y) for x, y in found if math.isfinite(y)]


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e12 else f"{value:.4g}"
    if isinstance(value, int | str):
        return f"{value:,}" if isinstance(value, int) else value
    return json.dumps(value, ensure_ascii=False) if value else "–"
