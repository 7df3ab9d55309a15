"""Fine-tune a model to embed texts: makes a sentence-transformers folder (train/stages/embed)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.flow.training import Training, TrainingStage
from danlu.flow.tuning import DATA_HELP, check_whole, read_split, save_tuned
from danlu.lineage.stage import StageContext
from danlu.train.audit_related import audit_related
from danlu.train.findings import report
from danlu.train.related import PASSAGE, QUERY, encode_rows, sentence_model
from danlu.train.stages.embed import EmbedderConfig, train
from danlu.train.start import load_to_train


class Embed(TrainingStage[EmbedderConfig]):
    """The plugin."""

    config_type = EmbedderConfig
    version = 1
    inputs: Mapping[str, str] = {
        "model": "the model folder to start from",
        "data": f"rows with anchor and positive, or with score: {DATA_HELP}",
    }

    def check(self, config: EmbedderConfig) -> None:
        check_whole(config)

    def run(self, config: EmbedderConfig, context: StageContext) -> dict[str, Any]:
        training = Training(context, "Text embeddings", config)
        source, rows = context.inputs["model"], read_split(context.inputs["data"])
        model = load_to_train(source, config)
        prompts = {QUERY: config.query_prompt, PASSAGE: config.passage_prompt}
        model = sentence_model(
            model,
            pooling=config.pooling,
            normalise=config.normalise,
            max_row_tokens=config.max_row_tokens,
            prompts={name: prompt for name, prompt in prompts.items() if prompt is not None},
            source=source,
        )
        encoded = {name: encode_rows(some, model, scored=config.is_scored) for name, some in rows.items() if some}
        findings = audit_related(
            rows["train"], rows["validation"], encoded["train"], loss=config.loss, tokenizer=model.chat.tokenizer
        )
        told = report(findings, config.audit, context.events)
        watched, tested = (encoded[name].items if name in encoded else [] for name in ("validation", "test"))
        metrics = train(model, encoded["train"].items, watched, config, training.job, test_rows=tested)
        changes = save_tuned(model, config, context.output, training.job.world)
        counts = encoded["train"].counts()
        return training.finish({**metrics, **changes, **counts, "precision": model.precision}, told)


plugin = Embed()
