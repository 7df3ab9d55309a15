"""Raw rows → cleaned, masked, labelled and split instruction pairs with a data card (data/prepare)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danlu.core.errors import DataError
from danlu.data.prepare import PrepareConfig, prepare
from danlu.flow.recipe import RecipeStage
from danlu.lineage.stage import StageContext


class Prepare(RecipeStage[PrepareConfig]):
    """The plugin."""

    config_type = PrepareConfig
    version = 1
    kind = "data"
    inputs: Mapping[str, str] = {"rows": "a fetched table: Parquet, JSON lines or CSV"}

    def fingerprint(self, config: PrepareConfig) -> dict[str, Any]:
        """Versions and resolved options of the operators: a better operator makes the data again."""
        return {"steps": config.describe_steps()}

    def run(self, config: PrepareConfig, context: StageContext) -> dict[str, Any]:
        return prepare(_only_file(context.inputs["rows"]), config, context.output, context.events, context.seed)


def _only_file(folder: Path) -> Path:
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != "manifest.json")
    if len(files) != 1:
        raise DataError(f"{folder} holds {len(files)} files.", "Give the table as one file.")
    return files[0]


plugin = Prepare()
