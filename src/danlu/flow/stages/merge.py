"""Add an adapter to its base in fp32: a plain model folder again (train/lora)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from danlu.flow.recipe import RecipeStage
from danlu.lineage.stage import StageContext
from danlu.models.load import load_model
from danlu.models.model import Precision
from danlu.models.save import save_model
from danlu.train.adapter import load_adapter
from danlu.train.merge import merge_lora, round_weights


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """How to keep what comes out."""

    precision: Precision = "fp32"
    """Number type of the merged weights; they are added in fp32 either way, and rounded once."""


class Merge(RecipeStage[MergeConfig]):
    """The plugin."""

    config_type = MergeConfig
    version = 1
    kind = "model"
    inputs: Mapping[str, str] = {"model": "the base the adapter was trained on", "adapter": "a PEFT adapter"}
    uses_seed = False

    def run(self, config: MergeConfig, context: StageContext) -> dict[str, Any]:
        model = load_model(context.inputs["model"], precision="fp32")
        load_adapter(model, context.inputs["adapter"])
        merged = merge_lora(model)
        rounding = round_weights(model, config.precision)
        size_bytes = save_model(model, context.output)
        return {
            "size_bytes": size_bytes,
            "largest_change": round(merged.largest_change, 6),
            "largest_rounding": round(rounding, 6),
        }


plugin = Merge()
