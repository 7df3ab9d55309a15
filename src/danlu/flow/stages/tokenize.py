"""Rows of text and a tokenizer → token shards: train/ and validation/, split by document (data/shards).

Which side a document falls on depends on its text alone, so copies stay together, and a document that a tokenizer of
ours kept aside (text/bpe, the same hash) is the first to be held out here. A killed run goes on after its last shard.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from danlu.core.errors import ConfigError, DataError
from danlu.core.files import read_json_object, sha256_file
from danlu.data.shard_writer import ShardConfig, ShardWriter
from danlu.data.shards import ShardIndex
from danlu.flow.recipe import ANY_INPUT, RecipeStage
from danlu.flow.stages.corpus import text_files
from danlu.lineage.stage import StageContext
from danlu.text.bpe import BPEConfig, is_held_out
from danlu.text.corpus import Corpus
from danlu.text.tokenizer import TextTokenizer, load_tokenizer

SPLITS = ("train", "validation")
_USUAL_SEPARATOR = "<|endoftext|>"
_BAR_EVERY = 256


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """What becomes of a document."""

    column: str = "text"
    """Column or key of the text in .jsonl and .parquet files."""
    validation_share: float = 0.01
    """Share of documents held out."""
    separator: str | None = None
    """Special token behind each document; left out: <|endoftext|> where there is one, else what ends an answer."""
    shards: ShardConfig = field(default_factory=ShardConfig)
    """How files are cut."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.validation_share <= 0.5:
            raise ConfigError(f"validation_share is {self.validation_share}.", "Use 0 to 0.5.")


class Tokenize(RecipeStage[TokenizeConfig]):
    """The plugin."""

    config_type = TokenizeConfig
    version = 1
    kind = "tokens"
    inputs: Mapping[str, str] = {
        "rows": "texts as .txt, .jsonl or .parquet",
        "tokenizer": "a folder with a tokenizer: a trained one, or a model",
    }
    optional_inputs: Mapping[str, str] = {ANY_INPUT: "more texts"}
    uses_seed = False

    def run(self, config: TokenizeConfig, context: StageContext) -> dict[str, Any]:
        folder = context.inputs["tokenizer"]
        tokenizer = _load(folder)
        hashed = folder / "tokenizer.json"
        rows = [path for name, path in context.inputs.items() if name != "tokenizer"]
        corpus = Corpus(files=tuple(path for rows_ in rows for path in text_files(rows_)), column=config.column)
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(
                    ShardWriter(
                        context.work / split,
                        vocabulary_size=tokenizer.vocabulary_size,
                        tokenizer_sha256=sha256_file(hashed) if hashed.is_file() else "",
                        config=config.shards,
                    )
                )
                for split in SPLITS
            }
            num_empty = _write(corpus, tokenizer, config, writers, context)
            indexes = {split: writer.finish() for split, writer in writers.items()}
        if not indexes["train"].num_documents:
            raise DataError(f"No text to train on: {num_empty} documents are empty.", "Check the rows and the column.")
        for split in SPLITS:
            os.replace(context.work / split, context.output / split)
        metrics: dict[str, Any] = {split: describe(index) for split, index in indexes.items()}
        return {**metrics, "vocabulary_size": tokenizer.vocabulary_size, "empty_documents": num_empty}


def _write(
    corpus: Corpus,
    tokenizer: TextTokenizer,
    config: TokenizeConfig,
    writers: Mapping[str, ShardWriter],
    context: StageContext,
) -> int:
    """Give every document to its writer; returns how many were empty."""
    before, after = _frame(tokenizer, config.separator)
    held_out = BPEConfig(held_out=config.validation_share)
    num_empty = 0
    done = sum(writer.next_document > 0 for writer in writers.values())
    if done:
        context.events.say(f"Going on after document {max(w.next_document for w in writers.values())}.")
    with context.events.bar("tokenize", unit="documents") as bar:
        for number, text in enumerate(corpus):
            if number % _BAR_EVERY == 0:
                bar.advance(_BAR_EVERY if number else 0)
            if not text:
                num_empty += 1
                continue
            writer = writers["validation" if is_held_out(text, held_out) else "train"]
            if number >= writer.next_document:
                ids = [*before, *tokenizer.encode(text), *after]
                writer.add(number, ids, text_bytes=len(text.encode()), characters=len(text))
    return num_empty


def describe(index: ShardIndex) -> dict[str, Any]:
    """A split's numbers; tokens count the separators, characters and bytes the text alone."""
    return {
        "documents": index.num_documents,
        "tokens": index.num_tokens,
        "text_bytes": index.text_bytes,
        "characters": index.characters,
        "characters_per_token": round(index.characters / index.num_tokens, 4) if index.num_tokens else 0.0,
        "shards": len(index.shards),
    }


def _frame(tokenizer: TextTokenizer, separator: str | None) -> tuple[list[int], list[int]]:
    """Ids before and after each document: the tokenizer's begin token, if it has one, and the separator."""
    name = separator
    if name is None and _USUAL_SEPARATOR in tokenizer.special_ids:
        name = _USUAL_SEPARATOR
    if name is None:
        name = next(iter(tokenizer.end_tokens), None)
    if name is None or name not in tokenizer.special_ids:
        known = ", ".join(sorted(tokenizer.special_ids)) or "none"
        raise ConfigError(
            f"The tokenizer has no special token {name!r} to put between documents." if name else
            "The tokenizer names no token that ends a text.",
            f"Set separator to one of its special tokens: {known}.",
        )  # fmt: skip
    end = tokenizer.special_ids[name]
    begin = [] if tokenizer.begin_id in (None, end) else [tokenizer.begin_id]
    return [index for index in begin if index is not None], [end]


def _load(folder: Path) -> TextTokenizer:
    config = folder / "tokenizer_config.json"
    return load_tokenizer(folder, read_json_object(config) if config.is_file() else {})


plugin = Tokenize()
