"""Fine-tune a model of images and texts: makes a model folder (train/stages/pair)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.flow.training import Training, TrainingStage
from danlu.flow.tuning import DATA_HELP, check_whole, read_split, save_tuned
from danlu.lineage.stage import StageContext
from danlu.models.images import ImageProcessor
from danlu.train.audit_related import audit_captions
from danlu.train.captioned import encode_rows
from danlu.train.findings import report
from danlu.train.stages.pair import PairTrainConfig, train
from danlu.train.start import load_to_train


class Pair(TrainingStage[PairTrainConfig]):
    """The plugin."""

    config_type = PairTrainConfig
    version = 1
    inputs: Mapping[str, str] = {
        "model": "the model folder to start from",
        "data": f"rows with image and text: {DATA_HELP}",
    }

    def check(self, config: PairTrainConfig) -> None:
        check_whole(config)

    def run(self, config: PairTrainConfig, context: StageContext) -> dict[str, Any]:
        training = Training(context, "Images and texts", config)
        source, rows = context.inputs["model"], read_split(context.inputs["data"])
        model = load_to_train(source, config)
        images, folder = ImageProcessor.of_folder(source), context.inputs["data"]
        encoded = {name: encode_rows(some, model, config.max_row_tokens, folder) for name, some in rows.items() if some}
        findings = audit_captions(rows["train"], rows["validation"], encoded["train"], model.chat.tokenizer)
        told = report(findings, config.audit, context.events)
        watched, tested = (encoded[name].items if name in encoded else [] for name in ("validation", "test"))
        metrics = train(model, encoded["train"].items, watched, config, training.job, test_rows=tested, images=images)
        changes = save_tuned(model, config, context.output, training.job.world)
        images.save(context.output)
        counts = encoded["train"].counts()
        return training.finish({**metrics, **changes, **counts, "precision": model.precision}, told)


plugin = Pair()
