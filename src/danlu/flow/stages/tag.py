"""Fine-tune a model to tag words, entities for example: makes a model folder (train/stages/tag)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.flow.training import Training, TrainingStage
from danlu.flow.tuning import DATA_HELP, check_whole, read_split, save_tuned
from danlu.lineage.stage import StageContext
from danlu.models.heads.tag import TagHead
from danlu.models.rehead import with_head
from danlu.train.audit_labels import audit_tags
from danlu.train.findings import report
from danlu.train.stages.tag import TaggerConfig, train
from danlu.train.start import load_to_train
from danlu.train.tagged import encode_rows, tag_head, tags_of


class Tag(TrainingStage[TaggerConfig]):
    """The plugin."""

    config_type = TaggerConfig
    version = 1
    inputs: Mapping[str, str] = {
        "model": "the model folder to start from",
        "data": f"rows with tokens and tags, or text and spans: {DATA_HELP}",
    }

    def check(self, config: TaggerConfig) -> None:
        check_whole(config)

    def run(self, config: TaggerConfig, context: StageContext) -> dict[str, Any]:
        training = Training(context, "Tagging", config)
        source, rows = context.inputs["model"], read_split(context.inputs["data"])
        model = load_to_train(source, config)
        wanted, head = tags_of(rows["train"], config.labels), model.network.head
        if not isinstance(head, TagHead) or head.config.labels != wanted.labels:
            model = with_head(model, wanted, seed=context.seed, source=source)
        encoded = {name: encode_rows(some, model, config.max_row_tokens) for name, some in rows.items() if some}
        labels = tag_head(model).config.labels
        findings = audit_tags(rows["train"], rows["validation"], encoded["train"], labels, model.chat.tokenizer)
        told = report(findings, config.audit, context.events)
        watched, tested = (encoded[name].items if name in encoded else [] for name in ("validation", "test"))
        metrics = train(model, encoded["train"].items, watched, config, training.job, test_rows=tested)
        changes = save_tuned(model, config, context.output, training.job.world)
        counts = encoded["train"].counts()
        return training.finish({**metrics, **changes, **counts, "precision": model.precision}, told)


plugin = Tag()
