"""Make a model smaller (compress/quantize)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.compress.quantize import QuantizeConfig, quantize
from danlu.core.files import read_jsonl
from danlu.flow.recipe import RecipeStage
from danlu.lineage.stage import StageContext


class Quantize(RecipeStage[QuantizeConfig]):
    """The plugin."""

    config_type = QuantizeConfig
    version = 1
    kind = "model"
    inputs: Mapping[str, str] = {"model": "a plain model folder"}
    optional_inputs: Mapping[str, str] = {"data": "train.jsonl with messages, to calibrate on"}
    uses_seed = False

    def run(self, config: QuantizeConfig, context: StageContext) -> dict[str, Any]:
        rows = read_jsonl(context.inputs["data"] / "train.jsonl") if "data" in context.inputs else ()
        return quantize(context.inputs["model"], context.output, config, rows)


plugin = Quantize()
