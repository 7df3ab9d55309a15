"""Train a byte-level BPE vocabulary on rows of text (text/bpe): makes a tokenizer folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from danlu.flow.recipe import ANY_INPUT, RecipeStage
from danlu.flow.stages.corpus import text_files
from danlu.lineage.stage import StageContext
from danlu.text.bpe import BPEConfig, train_bpe
from danlu.text.corpus import Corpus


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig:
    """What to train on, and how."""

    column: str = "text"
    """Column or key of the text in .jsonl and .parquet files."""
    bpe: BPEConfig = field(default_factory=BPEConfig)
    """The vocabulary."""


class TrainTokenizer(RecipeStage[TrainTokenizerConfig]):
    """The plugin."""

    config_type = TrainTokenizerConfig
    version = 1
    kind = "tokenizer"
    inputs: Mapping[str, str] = {"rows": "texts as .txt, .jsonl or .parquet"}
    optional_inputs: Mapping[str, str] = {ANY_INPUT: "more texts"}
    uses_seed = False

    def run(self, config: TrainTokenizerConfig, context: StageContext) -> dict[str, Any]:
        files = tuple(path for folder in context.inputs.values() for path in text_files(folder))
        trained = train_bpe(Corpus(files=files, column=config.column), config.bpe, context.events)
        trained.save(context.output)
        return {
            "vocabulary_size": trained.tokenizer.vocabulary_size,
            "trained_characters": dict(trained.trained_characters),
            "characters_per_token": {
                language: round(density.characters_per_token, 4) for language, density in trained.density.items()
            },
        }


plugin = TrainTokenizer()
