"""Fine-tune a model on conversations with LoRA: makes a PEFT adapter and its loss curve (train/stages/sft)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.core.files import read_jsonl
from danlu.flow.recipe import RecipeStage
from danlu.lineage.stage import StageContext
from danlu.models.load import load_model
from danlu.train.lora import save_adapter
from danlu.train.run import Job
from danlu.train.stages.sft import SftConfig, encode_rows, finetune


class Sft(RecipeStage[SftConfig]):
    """The plugin."""

    config_type = SftConfig
    version = 1
    kind = "adapter"
    inputs: Mapping[str, str] = {
        "model": "the model folder to start from",
        "data": "train.jsonl and validation.jsonl with messages",
    }

    def run(self, config: SftConfig, context: StageContext) -> dict[str, Any]:
        model = load_model(context.inputs["model"])
        folder = context.inputs["data"]
        train = encode_rows(read_jsonl(folder / "train.jsonl"), model.chat, config.max_row_tokens)
        watched = list(read_jsonl(folder / "validation.jsonl"))  # empty when no product could be spared for it
        validation = encode_rows(watched, model.chat, config.max_row_tokens).encoded if watched else []
        job = Job(
            work=context.work, log_path=context.output / "log.jsonl", events=context.events, seed=context.seed
        )  # fmt: skip
        metrics = finetune(model, train.encoded, validation, config, job)
        save_adapter(model, context.output, config.lora, base=context.artifacts["model"].id)
        return {**metrics, "left_out": train.left_out, "precision": model.precision}


plugin = Sft()
