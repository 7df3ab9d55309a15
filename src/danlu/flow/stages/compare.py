"""Is one model better than another on the same items? Differences with intervals and p-values (evaluate/compare)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from danlu.core.files import write_json
from danlu.evaluate.compare import compare
from danlu.flow.recipe import RecipeStage
from danlu.lineage.stage import StageContext


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Nothing to choose."""


class Compare(RecipeStage[CompareConfig]):
    """The plugin."""

    config_type = CompareConfig
    version = 1
    kind = "comparison"
    inputs: Mapping[str, str] = {"baseline": "an evaluation", "candidate": "another of the same task and items"}
    uses_seed = False

    def run(self, config: CompareConfig, context: StageContext) -> dict[str, Any]:
        compared = compare(context.inputs["baseline"], context.inputs["candidate"])
        write_json(context.output / "comparison.json", compared)
        return dict(compared)


plugin = Compare()
