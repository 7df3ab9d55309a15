"""Fine-tune an encoder-decoder on sources and targets: makes a model folder (train/stages/seq2seq)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from danlu.evaluate.metrics import Bleu4, ChrF
from danlu.flow.training import Training, TrainingStage
from danlu.flow.tuning import DATA_HELP, check_whole, read_split, save_tuned
from danlu.lineage.stage import StageContext
from danlu.train.audit_related import audit_targets
from danlu.train.findings import report
from danlu.train.source_target import encode_rows
from danlu.train.stages.seq2seq import Seq2SeqConfig, train
from danlu.train.start import load_to_train


class Seq2Seq(TrainingStage[Seq2SeqConfig]):
    """The plugin."""

    config_type = Seq2SeqConfig
    version = 1
    inputs: Mapping[str, str] = {
        "model": "the model folder to start from",
        "data": f"rows with source and target: {DATA_HELP}",
    }

    def check(self, config: Seq2SeqConfig) -> None:
        check_whole(config)

    def run(self, config: Seq2SeqConfig, context: StageContext) -> dict[str, Any]:
        training = Training(context, "Sources and targets", config)
        source, rows = context.inputs["model"], read_split(context.inputs["data"])
        model = load_to_train(source, config)
        encoded = {name: encode_rows(some, model, **config.row_options) for name, some in rows.items() if some}
        tokenizer = model.chat.tokenizer
        findings = audit_targets(
            rows["train"],
            rows["validation"],
            encoded["train"],
            ends=bool(model.generation.end_ids | tokenizer.target.end_ids),
            tokenizer=tokenizer,
        )
        told = report(findings, config.audit, context.events)
        watched, tested = (encoded[name].items if name in encoded else [] for name in ("validation", "test"))
        metrics = train(model, encoded["train"].items, watched, config, training.job, test_rows=tested, compare=compare)
        changes = save_tuned(model, config, context.output, training.job.world)
        counts = encoded["train"].counts()
        return training.finish({**metrics, **changes, **counts, "precision": model.precision}, told)


def compare(outputs: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """chrF and BLEU-4 of what was written; Chinese is cut into characters for BLEU (sacrebleu)."""
    is_chinese = any("\u4e00" <= character <= "\u9fff" for text in references for character in text)
    metrics = {"chrf": ChrF(), "bleu4": Bleu4("zh" if is_chinese else "13a")}
    return {name: metric.value(metric.counts(outputs, references).sum(axis=0)) for name, metric in metrics.items()}


plugin = Seq2Seq()
