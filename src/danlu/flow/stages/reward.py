"""Train a reward model on compared answers (train/stages/reward): makes a model, or an adapter, with one logit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.core.errors import ConfigError
from danlu.core.files import read_jsonl
from danlu.flow.training import Training, TrainingStage
from danlu.flow.tuning import encode_watched
from danlu.lineage.stage import StageContext
from danlu.models.rehead import NewScorer, with_head
from danlu.models.save import save_model
from danlu.train.audit_preferences import audit_pairs
from danlu.train.findings import report
from danlu.train.merge import merge_lora
from danlu.train.stages.reward import RewardModelConfig, encode_rows, train
from danlu.train.start import load_to_train


class RewardModel(TrainingStage[RewardModelConfig]):
    """The plugin."""

    config_type = RewardModelConfig
    version = 1
    inputs: Mapping[str, str] = {
        "model": "the model folder whose body is used",
        "data": "train.jsonl and validation.jsonl with prompt, chosen and rejected",
    }

    def check(self, config: RewardModelConfig) -> None:
        """The adapter is merged into what is saved."""
        if config.int8_base:
            raise ConfigError("int8_base is true.", "A reward model is saved merged; use the plain base.")

    def run(self, config: RewardModelConfig, context: StageContext) -> dict[str, Any]:
        training = Training(context, "Reward model", config)
        path = context.inputs["model"]
        body = load_to_train(path, config)
        model = with_head(body, NewScorer(pooling=config.pooling), seed=context.seed, source=path)
        folder = context.inputs["data"]
        read, watched = list(read_jsonl(folder / "train.jsonl")), list(read_jsonl(folder / "validation.jsonl"))
        rows = encode_rows(read, model, config.max_row_tokens)
        validation = encode_watched(
            lambda some: encode_rows(some, model, config.max_row_tokens).items, watched, context.events
        )
        found = report(audit_pairs(read, watched, rows.left_out, rows.truncated), config.audit, context.events)
        metrics = train(model, rows.items, validation, config, training.job)
        told: dict[str, Any] = {"precision": model.precision}
        if training.job.world.is_first:
            told["largest_rounding"] = merge_lora(model).largest_rounding if config.lora is not None else 0.0
            told["size_bytes"] = save_model(model, context.output)
        return training.finish({**metrics, **rows.counts(), **told}, found)


plugin = RewardModel()
