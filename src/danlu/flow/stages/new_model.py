"""An untrained model of given sizes with a given tokenizer (train/new_model): makes a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.core.errors import ModelError
from danlu.flow.recipe import RecipeStage
from danlu.lineage.stage import StageContext
from danlu.models.checkpoint import read_chat
from danlu.models.save import save_model
from danlu.train.new_model import NewModelConfig, new_model


class NewModel(RecipeStage[NewModelConfig]):
    """The plugin."""

    config_type = NewModelConfig
    version = 1
    kind = "model"
    inputs: Mapping[str, str] = {"tokenizer": "a folder with a tokenizer: a trained one, or a model"}

    def run(self, config: NewModelConfig, context: StageContext) -> dict[str, Any]:
        folder = context.inputs["tokenizer"]
        chat = read_chat(folder)
        if chat is None:
            raise ModelError(f"{folder} has no tokenizer.", "Give a train_tokenizer stage, or a model with one.")
        model = new_model(config, chat, context.seed)
        size = save_model(model, context.output)
        table = model.config.vocabulary_size * model.config.width
        return {
            "parameters": model.num_parameters(),
            "parameters_without_tables": model.num_parameters() - table * (1 if config.tied else 2),
            "vocabulary_size": model.config.vocabulary_size,
            "size_bytes": size,
        }


plugin = NewModel()
