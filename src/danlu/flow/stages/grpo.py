"""Learn from rewards of tried answers (train/stages/grpo): makes an adapter and its curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.core.errors import ConfigError
from danlu.core.files import read_jsonl
from danlu.flow.recipe import RecipeStage
from danlu.flow.training import Training
from danlu.lineage.stage import StageContext
from danlu.models.load import load_model
from danlu.train.method import save_trained
from danlu.train.rewards import Reward, Scorer
from danlu.train.rollout import encode_prompts
from danlu.train.stages.grpo import GrpoConfig, train
from danlu.train.start import load_to_train


class Grpo(RecipeStage[GrpoConfig]):
    """The plugin."""

    config_type = GrpoConfig
    version = 1
    kind = "adapter"
    trains = True
    inputs: Mapping[str, str] = {
        "model": "the model folder to start from, fine-tuned already",
        "data": "train.jsonl and validation.jsonl with prompt, and what the rewards read",
    }
    optional_inputs: Mapping[str, str] = {"scorer": "a reward model, whose opinion is added"}

    def run(self, config: GrpoConfig, context: StageContext) -> dict[str, Any]:
        training = Training(context, "Learning from rewards", config)
        rewards: dict[str, Reward] = {}
        if "scorer" in context.inputs:
            rewards["scorer"] = Scorer(load_model(context.inputs["scorer"]))
        elif not config.rewards:
            raise ConfigError(
                "rewards is empty and there is no scorer.", "Name a rule such as exact, or an input scorer."
            )
        model = load_to_train(context.inputs["model"], config)
        folder = context.inputs["data"]
        prompts = encode_prompts(read_jsonl(folder / "train.jsonl"), model.chat, config.max_prompt_tokens)
        watched = list(read_jsonl(folder / "validation.jsonl"))
        validation = encode_prompts(watched, model.chat, config.max_prompt_tokens).items if watched else []
        metrics = train(model, prompts.items, validation, config, training.job, rewards=rewards)
        save_trained(model, config, context.output, base=context.artifacts["model"].id)
        return training.finish({**metrics, **prompts.counts(), "precision": model.precision})


plugin = Grpo()
