"""Train a model on token shards, from scratch or on (train/stages/pretrain): makes a model folder and its curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.core.files import sha256_file
from danlu.data.loader import TokenSource
from danlu.data.shards import TokenShards
from danlu.flow.recipe import ANY_INPUT
from danlu.flow.training import Training, TrainingStage
from danlu.lineage.stage import StageContext
from danlu.train.audit_shards import audit_shards
from danlu.train.findings import report
from danlu.train.stages.pretrain import PretrainConfig, pretrain
from danlu.train.start import load_to_train


class Pretrain(TrainingStage[PretrainConfig]):
    """The plugin."""

    config_type = PretrainConfig
    version = 1
    inputs: Mapping[str, str] = {
        "model": "the model folder to start from: a new one, or a trained one",
        "tokens": "shards: train/ and validation/ of the tokenize stage",
    }
    optional_inputs: Mapping[str, str] = {ANY_INPUT: "more shards; only their train/ is used"}

    def kind_of(self, config: PretrainConfig) -> str:
        return "adapter" if config.lora is not None else "model"

    def run(self, config: PretrainConfig, context: StageContext) -> dict[str, Any]:
        training = Training(context, "Pre-training", config)
        folders = [path for name, path in context.inputs.items() if name not in ("model", "tokens")]
        train = [TokenSource(shards=TokenShards(f / "train")) for f in (context.inputs["tokens"], *folders)]
        validation = TokenShards(context.inputs["tokens"] / "validation")
        _check_tokenizer(context, [source.shards for source in train])
        model = load_to_train(context.inputs["model"], config)
        tokenizer = model.chat.tokenizer if model.has_tokenizer else None
        findings = audit_shards([source.shards for source in train], validation, tokenizer)
        told = report(findings, config.audit, context.events)
        precision = model.precision
        metrics = pretrain(model, train, validation, config, training.job)
        training.save(model, config, base=context.artifacts["model"].id)
        return training.finish({**metrics, "precision": precision}, told)


def _check_tokenizer(context: StageContext, shards: list[TokenShards]) -> None:
    """Say so when ids may mean something else to the model than to what made them."""
    path = context.inputs["model"] / "tokenizer.json"
    made_by = {one.index.tokenizer_sha256 for one in shards} - {""}
    if path.is_file() and made_by - {sha256_file(path)}:
        context.events.say("The shards were made by another tokenizer.json than the model's: check that ids agree.")


plugin = Pretrain()
