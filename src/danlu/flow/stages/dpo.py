"""Learn from compared answers: DPO, or IPO, ORPO, SimPO, KTO (train/stages/dpo). Makes an adapter and its curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.core.files import read_jsonl
from danlu.flow.recipe import RecipeStage
from danlu.flow.training import Training
from danlu.lineage.stage import StageContext
from danlu.train.comparisons import Kto
from danlu.train.method import save_trained
from danlu.train.preferences import encode_judged, encode_pairs
from danlu.train.stages.dpo import DpoConfig, train
from danlu.train.start import load_to_train


class Preferences(RecipeStage[DpoConfig]):
    """The plugin."""

    config_type = DpoConfig
    version = 1
    kind = "adapter"
    trains = True
    inputs: Mapping[str, str] = {
        "model": "the model folder to start from, fine-tuned already",
        "data": "train.jsonl and validation.jsonl with prompt, chosen and rejected, or prompt, completion and label",
    }

    def run(self, config: DpoConfig, context: StageContext) -> dict[str, Any]:
        training = Training(context, "Learning from compared answers", config)
        model = load_to_train(context.inputs["model"], config)
        encode = encode_judged if isinstance(config.method, Kto) else encode_pairs
        folder = context.inputs["data"]
        rows = encode(read_jsonl(folder / "train.jsonl"), model.chat, config.max_row_tokens)
        watched = list(read_jsonl(folder / "validation.jsonl"))
        validation = encode(watched, model.chat, config.max_row_tokens).items if watched else []
        metrics = train(model, rows.items, validation, config, training.job)
        save_trained(model, config, context.output, base=context.artifacts["model"].id)
        return training.finish({**metrics, **rows.counts(), "precision": model.precision})


plugin = Preferences()
