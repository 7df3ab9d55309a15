"""Learn from rewards of tried answers (train/stages/grpo): makes an adapter and its curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.core.errors import ConfigError
from danlu.core.files import read_jsonl
from danlu.flow.training import Training, TrainingStage
from danlu.flow.tuning import encode_watched
from danlu.lineage.stage import StageContext
from danlu.models.load import load_model
from danlu.train.audit_preferences import audit_prompts
from danlu.train.findings import report
from danlu.train.rewards import Reward, Scorer, columns_read
from danlu.train.rollout import encode_prompts
from danlu.train.stages.grpo import GrpoConfig, train
from danlu.train.start import load_to_train


class Grpo(TrainingStage[GrpoConfig]):
    """The plugin."""

    config_type = GrpoConfig
    version = 1
    inputs: Mapping[str, str] = {
        "model": "the model folder to start from, fine-tuned already",
        "data": "train.jsonl and validation.jsonl with prompt, and what the rewards read",
    }
    optional_inputs: Mapping[str, str] = {"scorer": "a reward model, whose opinion is added"}

    def kind_of(self, config: GrpoConfig) -> str:
        return "adapter" if config.lora is not None else "model"

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
        validation = encode_watched(
            lambda some: encode_prompts(some, model.chat, config.max_prompt_tokens).items, watched, context.events
        )
        missing = {name: sum(name not in one.row for one in prompts.items) for name in columns_read(config.rewards)}
        asked, other = ([one.text for one in some] for some in (prompts.items, validation))
        told = report(audit_prompts(asked, other, prompts.left_out, missing), config.audit, context.events)
        metrics = train(model, prompts.items, validation, config, training.job, rewards=rewards)
        training.save(model, config, base=context.artifacts["model"].id)
        return training.finish({**metrics, **prompts.counts(), "precision": model.precision}, told)


plugin = Grpo()
