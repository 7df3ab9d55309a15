"""Turn a GGUF file or a model folder into a plain model folder in fp32, the form every later stage reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.core.errors import ModelError
from danlu.flow.recipe import RecipeStage
from danlu.lineage.stage import StageContext
from danlu.models.load import load_model
from danlu.models.save import save_model


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Nothing to choose yet: fp32 keeps every value of the file."""


class Convert(RecipeStage[ConvertConfig]):
    """The plugin."""

    config_type = ConvertConfig
    version = 1
    kind = "model"
    inputs: Mapping[str, str] = {"weights": "a fetched .gguf file or model folder"}
    uses_seed = False

    def run(self, config: ConvertConfig, context: StageContext) -> dict[str, Any]:
        model = load_model(find_model(context.inputs["weights"]), precision="fp32")
        size_bytes = save_model(model, context.output)
        return {"parameters": model.num_parameters(), "size_bytes": size_bytes, "family": model.architecture.model_type}


def find_model(folder: Path) -> Path:
    """The model inside an artifact: the folder itself, or the one .gguf file in it."""
    if (folder / "config.json").is_file():
        return folder
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise ModelError(
            f"{folder} holds {len(files)} .gguf files and no config.json.", "A model artifact holds exactly one model."
        )
    return files[0]


plugin = Convert()
