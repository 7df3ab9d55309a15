"""Write report.html: one self-contained page with the curve, the data, the quality table, samples, times and lineage.

Knows nothing of what its inputs are; flow/report.py looks at the files they hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from danlu.core.errors import ConfigError
from danlu.flow.recipe import ANY_INPUT, RecipeStage
from danlu.flow.report import render_report
from danlu.flow.words import Language
from danlu.lineage.runs import RunRecord, read_run
from danlu.lineage.stage import StageContext


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """How the report reads."""

    title: str = ""
    """Its title; the recipe's name if left out."""
    language: Language = "en"
    """Language of headings: en or zh."""
    num_samples: int = 6
    """How many prompts to show with every model's answer."""

    def __post_init__(self) -> None:
        if self.num_samples < 0:
            raise ConfigError(f"num_samples is {self.num_samples}.", "Use 0 or more.")


class Report(RecipeStage[ReportConfig]):
    """The plugin."""

    config_type = ReportConfig
    version = 1
    kind = "report"
    optional_inputs: Mapping[str, str] = {ANY_INPUT: "Anything to show; evaluations become columns, in this order."}
    uses_seed = False

    def run(self, config: ReportConfig, context: StageContext) -> dict[str, Any]:
        html = render_report(
            context.store,
            context.artifacts,
            title=config.title,
            language=config.language,
            num_samples=config.num_samples,
            run=_this_run(context),
        )
        (context.output / "report.html").write_text(html, encoding="utf-8")
        return {"size_bytes": len(html.encode())}


def _this_run(context: StageContext) -> RunRecord | None:
    """The run this stage is part of: its events lie beside its record."""
    path = context.events.path
    return read_run(context.store, path.parent.name) if path is not None else None


plugin = Report()
