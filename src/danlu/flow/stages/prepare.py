"""Raw rows → cleaned, masked, labelled and split instruction pairs with a data card (data/prepare)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danlu.core.errors import DataError
from danlu.data.prepare import PrepareConfig, prepare
from danlu.flow.recipe import RecipeStage
from danlu.lineage.stage import StageContext
from danlu.lineage.store import Artifact


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
        source = _only_file(context.inputs["rows"])
        try:
            return prepare(source, config, context.output, context.events, context.seed)
        except DataError as error:
            theirs = _users_path(source, context.artifacts["rows"])
            raise DataError(error.message.replace(str(source), str(theirs)), error.hint) from error


def _users_path(source: Path, fetched: Artifact) -> Path:
    """What a person knows the file by: where it was fetched from, not our copy of it."""
    path = fetched.manifest.origin.config.get("path")
    if path is None:
        return source
    return Path(path) / source.name if Path(path).is_dir() else Path(path)


def _only_file(folder: Path) -> Path:
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != "manifest.json")
    if len(files) != 1:
        raise DataError(f"{folder} holds {len(files)} files.", "Give the table as one file.")
    return files[0]


plugin = Prepare()
