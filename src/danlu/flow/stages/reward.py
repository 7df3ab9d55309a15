"""Train a reward model on compared answers (train/stages/reward): makes a model, or an adapter, with one logit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.core.errors import ConfigError
from danlu.core.files import read_jsonl
from danlu.flow.recipe import RecipeStage
from danlu.flow.training import Training
from danlu.lineage.stage import StageContext
from danlu.models.rehead import NewScorer, with_head
from danlu.models.save import save_model
from danlu.train.merge import merge_lora
from danlu.train.stages.reward import RewardModelConfig, encode_rows, train
from danlu.train.start import load_to_train


class RewardModel(RecipeStage[RewardModelConfig]):
    """The plugin."""

    config_type = RewardModelConfig
    version = 1
    kind = "model"
    trains = True
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
        rows = encode_rows(read_jsonl(folder / "train.jsonl"), model, config.max_row_tokens)
        watched = list(read_jsonl(folder / "validation.jsonl"))
        validation = encode_rows(watched, model, config.max_row_tokens).items if watched else []
        metrics = train(model, rows.items, validation, config, training.job)
        rounding = merge_lora(model).largest_rounding if config.lora is not None else 0.0
        size_bytes = save_model(model, context.output)
        told = {"size_bytes": size_bytes, "largest_rounding": rounding, "precision": model.precision}
        return training.finish({**metrics, **rows.counts(), **told})


plugin = RewardModel()
