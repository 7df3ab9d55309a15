"""Train a student to say what a teacher says (train/stages/distil): makes a model folder and its curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.core.errors import ConfigError
from danlu.flow.training import Training, TrainingStage
from danlu.flow.tuning import DATA_HELP, check_whole, read_split, save_tuned
from danlu.lineage.stage import StageContext
from danlu.models.load import load_model
from danlu.train.answers import encode_rows
from danlu.train.audit import audit_chats
from danlu.train.findings import report
from danlu.train.stages.distil import DistillationConfig, ask, train
from danlu.train.start import load_to_train
from danlu.train.student import shorter


class Distil(TrainingStage[DistillationConfig]):
    """The plugin."""

    config_type = DistillationConfig
    version = 1
    inputs: Mapping[str, str] = {
        "teacher": "the model folder to learn from",
        "data": f"rows with messages, with prompt and completion, or with text: {DATA_HELP}",
    }
    optional_inputs: Mapping[str, str] = {
        "student": "the model folder to train, with the teacher's tokenizer; without it keep_layers makes one"
    }

    def check(self, config: DistillationConfig) -> None:
        check_whole(config)

    def run(self, config: DistillationConfig, context: StageContext) -> dict[str, Any]:
        training = Training(context, "Distillation", config)
        source = context.inputs["teacher"]
        if "student" in context.inputs and config.keep_layers is not None:
            raise ConfigError(f"keep_layers is {config.keep_layers}, but there is a student.", "Leave one of them out.")
        if "student" not in context.inputs and config.keep_layers is None:
            raise ConfigError("There is no student.", "Give the input student, or keep_layers to make one.")
        if "student" in context.inputs and context.artifacts["student"].id == context.artifacts["teacher"].id:
            raise ConfigError("Student and teacher are the same model.", "Give another student, or keep_layers.")
        model = load_to_train(context.inputs.get("student", source), config)
        if config.keep_layers is not None:
            model = shorter(model, config.keep_layers)
        teacher = load_model(source, precision=model.precision, device=model.device)
        splits = {name: rows for name, rows in read_split(context.inputs["data"]).items() if rows}
        encoded = {name: encode_rows(rows, model.chat, config.max_row_tokens) for name, rows in splits.items()}
        items, left_out = encoded["train"].items, dict(encoded["train"].left_out)
        findings = audit_chats(splits["train"], items, left_out, splits.get("validation", []), model.chat)
        told = report(findings, config.audit, context.events)
        watched = encoded["validation"].items[: config.max_validation_rows] if "validation" in encoded else []
        kept = context.store.root / "cache" / "teacher"
        asked = ask(teacher, model, [*items, *watched], config, training.job, root=kept)
        sizes = {"parameters": model.num_parameters(), "teacher_parameters": teacher.num_parameters()}
        del teacher
        metrics = train(model, items, watched, config, training.job, teacher=asked)
        changes = save_tuned(model, config, context.output, training.job.world)
        counts = {"left_out": left_out, "precision": model.precision}
        return training.finish({**metrics, **sizes, **changes, **counts}, told)


plugin = Distil()
