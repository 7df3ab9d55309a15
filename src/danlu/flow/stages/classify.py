"""Fine-tune a model to tell labels of texts, pairs or images: makes a model folder (train/stages/classify)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.flow.training import Training, TrainingStage
from danlu.flow.tuning import DATA_HELP, check_whole, read_split, save_tuned
from danlu.lineage.stage import StageContext
from danlu.models.heads.classify import ClassifyHead
from danlu.models.images import ImageProcessor
from danlu.models.rehead import with_head
from danlu.models.vision import reads_images
from danlu.train.audit_labels import audit_labels
from danlu.train.findings import report
from danlu.train.labelled import encode_rows, labels_of
from danlu.train.stages.classify import ClassifierConfig, train
from danlu.train.start import load_to_train


class Classify(TrainingStage[ClassifierConfig]):
    """The plugin."""

    config_type = ClassifierConfig
    version = 1
    inputs: Mapping[str, str] = {
        "model": "the model folder to start from",
        "data": f"rows with text or image, and label: {DATA_HELP}",
    }

    def check(self, config: ClassifierConfig) -> None:
        check_whole(config)

    def run(self, config: ClassifierConfig, context: StageContext) -> dict[str, Any]:
        training = Training(context, "Classification", config)
        source, folder = context.inputs["model"], context.inputs["data"]
        rows = read_split(folder)
        model = load_to_train(source, config)
        wanted = labels_of(rows["train"], config.labels, config.pooling)
        head = model.network.head
        if not isinstance(head, ClassifyHead) or head.config.labels != getattr(wanted, "labels", ("score",)):
            model = with_head(model, wanted, seed=context.seed, source=source)
        images = ImageProcessor.of_folder(source) if reads_images(model) else None
        encoded = {name: encode_rows(some, model, config.max_row_tokens, folder) for name, some in rows.items() if some}
        found = encoded["train"]
        tokenizer = model.chat.tokenizer if model.has_tokenizer else None
        findings = audit_labels(rows["train"], rows["validation"], found, tokenizer)
        told = report(findings, config.audit, context.events)
        watched, tested = (encoded[name].items if name in encoded else [] for name in ("validation", "test"))
        metrics = train(model, found.items, watched, config, training.job, test_rows=tested, images=images)
        changes = save_tuned(model, config, context.output, training.job.world)
        if images is not None:
            images.save(context.output)
        return training.finish({**metrics, **changes, **found.counts(), "precision": model.precision}, told)


plugin = Classify()
