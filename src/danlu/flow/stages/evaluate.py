"""Answer and score the held-out items with a model, through the engine that serves it (evaluate/run)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from danlu.core.files import read_jsonl
from danlu.evaluate.run import EvaluateConfig, evaluate
from danlu.flow.recipe import RecipeStage
from danlu.lineage.stage import StageContext
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.engine import Engine
from danlu.serve.engine.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class EvaluateStageConfig:
    """What to evaluate, and how the engine runs it."""

    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Task, items, answers."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Batching."""


class Evaluate(RecipeStage[EvaluateStageConfig]):
    """The plugin."""

    config_type = EvaluateStageConfig
    version = 1
    kind = "evaluation"
    inputs: Mapping[str, str] = {"model": "the model folder", "data": "the artifact that holds the held-out rows"}
    uses_seed = False

    def run(self, config: EvaluateStageConfig, context: StageContext) -> dict[str, Any]:
        folder = context.inputs["model"]
        rows = read_jsonl(context.inputs["data"] / config.evaluate.rows)
        with Engine({"model": ModelSpec(name="model", path=str(folder))}, config.engine) as engine:
            metrics = evaluate(engine, rows, config.evaluate, context.output, context.events)
        return {**metrics, "size_bytes": sum(p.stat().st_size for p in folder.glob("*.safetensors"))}


plugin = Evaluate()
