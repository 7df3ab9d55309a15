"""Learn from compared answers: DPO, or IPO, ORPO, SimPO, KTO (train/stages/dpo). Makes an adapter and its curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.core.files import read_jsonl
from danlu.flow.training import Training, TrainingStage
from danlu.flow.tuning import encode_watched
from danlu.lineage.stage import StageContext
from danlu.train.audit_preferences import audit_judged, audit_pairs
from danlu.train.comparisons import Kto
from danlu.train.findings import report
from danlu.train.preferences import encode_judged, encode_pairs
from danlu.train.stages.dpo import DpoConfig, train
from danlu.train.start import load_to_train


class Preferences(TrainingStage[DpoConfig]):
    """The plugin."""

    config_type = DpoConfig
    version = 1
    inputs: Mapping[str, str] = {
        "model": "the model folder to start from, fine-tuned already",
        "data": "train.jsonl and validation.jsonl with prompt, chosen and rejected, or prompt, completion and label",
    }

    def kind_of(self, config: DpoConfig) -> str:
        return "adapter" if config.lora is not None else "model"

    def run(self, config: DpoConfig, context: StageContext) -> dict[str, Any]:
        training = Training(context, "Learning from compared answers", config)
        model = load_to_train(context.inputs["model"], config)
        encode = encode_judged if isinstance(config.method, Kto) else encode_pairs
        folder = context.inputs["data"]
        read, watched = list(read_jsonl(folder / "train.jsonl")), list(read_jsonl(folder / "validation.jsonl"))
        rows = encode(read, model.chat, config.max_row_tokens)
        validation = encode_watched(
            lambda some: encode(some, model.chat, config.max_row_tokens).items, watched, context.events
        )
        look = audit_judged if isinstance(config.method, Kto) else audit_pairs
        told = report(look(read, watched, rows.left_out), config.audit, context.events)
        metrics = train(model, rows.items, validation, config, training.job)
        training.save(model, config, base=context.artifacts["model"].id)
        return training.finish({**metrics, **rows.counts(), "precision": model.precision}, told)


plugin = Preferences()
