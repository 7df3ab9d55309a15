"""Fetch the descriptions of all packages that this machine's apt knows (data/sources/apt)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from danlu.data.sources.apt import fetch_descriptions
from danlu.flow.recipe import RecipeStage
from danlu.lineage.stage import StageContext


@dataclass(frozen=True, kw_only=True)
class DescriptionsConfig:
    """Which descriptions."""

    language: str = "en"
    """Language code, for example en or zh_CN."""


class Descriptions(RecipeStage[DescriptionsConfig]):
    """The plugin."""

    config_type = DescriptionsConfig
    version = 1
    kind = "source"
    uses_seed = False

    def run(self, config: DescriptionsConfig, context: StageContext) -> dict[str, Any]:
        files = fetch_descriptions(config.language, context.work, context.output)
        return {"files": len(files), "size_bytes": sum(path.stat().st_size for path in files)}


plugin = Descriptions()
