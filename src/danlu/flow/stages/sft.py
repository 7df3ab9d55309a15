"""Fine-tune a model on conversations with LoRA: makes a PEFT adapter and its loss curve (train/stages/sft)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.core.files import read_jsonl
from danlu.flow.training import Training, TrainingStage
from danlu.flow.tuning import encode_watched
from danlu.lineage.stage import StageContext
from danlu.train.audit import audit_chats
from danlu.train.findings import report
from danlu.train.stages.sft import SftConfig, encode_rows, finetune
from danlu.train.start import load_to_train


class Sft(TrainingStage[SftConfig]):
    """The plugin."""

    config_type = SftConfig
    version = 1
    inputs: Mapping[str, str] = {
        "model": "the model folder to start from",
        "data": "train.jsonl and validation.jsonl with messages",
    }

    def kind_of(self, config: SftConfig) -> str:
        return "adapter" if config.lora is not None else "model"

    def run(self, config: SftConfig, context: StageContext) -> dict[str, Any]:
        training = Training(context, "Supervised fine-tuning", config)
        model = load_to_train(context.inputs["model"], config)
        folder = context.inputs["data"]
        rows = list(read_jsonl(folder / "train.jsonl"))
        watched = list(read_jsonl(folder / "validation.jsonl"))  # empty when no product could be spared for it
        train = encode_rows(rows, model.chat, config.max_row_tokens)
        validation = encode_watched(
            lambda some: encode_rows(some, model.chat, config.max_row_tokens).encoded, watched, context.events
        )
        findings = audit_chats(rows, train.encoded, train.left_out, watched, model.chat)
        told = report(findings, config.audit, context.events)
        metrics = finetune(model, train.encoded, validation, config, training.job)
        training.save(model, config, base=context.artifacts["model"].id)
        return training.finish({**metrics, "left_out": train.left_out, "precision": model.precision}, told)


plugin = Sft()
