"""Your own rows → train.jsonl, validation.jsonl and test.jsonl as a training stage reads them (data/formats).

A file of chats, labels or pairs in one of the common forms; equal rows are kept once, and which split a row falls into
depends on its content and the seed alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from danlu.core.errors import ConfigError, DataError
from danlu.core.files import write_jsonl
from danlu.data.formats import FORMATS, as_it_is, renamed
from danlu.data.sources.files import OnBroken, read_rows
from danlu.flow.recipe import RecipeStage
from danlu.lineage.stage import StageContext

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """How rows become training data."""

    task: str = "sft"
    """The stage that will read them; sft, classify, seq2seq and pretrain know other tools' forms too."""
    columns: dict[str, str] = field(default_factory=dict[str, str])
    """Our name of a column to yours, for example {text: review, label: stars}."""
    validation_share: float = 0.05
    """Share of the rows that watch training; files named validation.* are taken instead where there are any."""
    test_share: float = 0.0
    """Share of the rows that score the end."""
    most_validation_rows: int = 500
    """At most so many."""
    max_rows: int = 0
    """At most so many rows in all; 0 for all."""
    on_broken: OnBroken = "error"
    """A row that cannot be read stops (error) or is left out and counted (drop)."""

    def __post_init__(self) -> None:
        for name in ("validation_share", "test_share"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Use 0 or more, less than 1.")
        if self.validation_share + self.test_share >= 1.0:
            raise ConfigError("validation_share and test_share leave nothing to train on.", "Lower them.")
        for name in ("most_validation_rows", "max_rows"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Use 0 or more.")


class Rows(RecipeStage[RowsConfig]):
    """The plugin."""

    config_type = RowsConfig
    version = 2
    kind = "data"
    inputs: Mapping[str, str] = {
        "rows": "a fetched file (.jsonl, .parquet, .csv), or a folder with train.* and maybe validation.* and test.*"
    }

    def run(self, config: RowsConfig, context: StageContext) -> dict[str, Any]:
        files = _files(context.inputs["rows"])
        counts = {"rows_in": 0, "broken": 0, "repeated": 0}
        seen: set[bytes] = set()
        splits: dict[str, list[dict[str, Any]]] = {name: [] for name in _SPLITS}
        for given in reversed(_SPLITS):  # what is held out by hand stays so
            for path in files.get(given, ()):
                for row in _named(_rows(path, config, counts), path):
                    key = _key(row)
                    if key in seen:
                        counts["repeated"] += 1
                        continue
                    seen.add(key)
                    splits[_split_of(given, _asked(row, key), config, files, context.seed)].append(row)
                    if config.max_rows and sum(map(len, splits.values())) >= config.max_rows:
                        break
        over = splits["validation"][config.most_validation_rows :] if "validation" not in files else []
        del splits["validation"][len(splits["validation"]) - len(over) :]
        splits["train"] += over
        if not splits["train"]:
            raise DataError("No row is left to train on.", "Give more rows, or hold out fewer.")
        for name, rows in splits.items():
            if rows or name == "validation":
                write_jsonl(context.output / f"{name}.jsonl", rows)
        kept = {f"{name}_rows": len(rows) for name, rows in splits.items()}
        dropped = {reason: counts[reason] for reason in ("broken", "repeated") if counts[reason]}
        return {
            "rows_in": counts["rows_in"],
            "rows_kept": sum(kept.values()),
            "dropped": dropped,
            **kept,
        }


def _files(folder: Path) -> dict[str, list[Path]]:
    """Files by the split their name says; a single one is all training rows."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "manifest.json")
    named = {name: [path for path in files if path.name.startswith(name)] for name in _SPLITS}
    if not named["train"]:
        if len(files) != 1:
            raise DataError(
                f"{folder} holds {', '.join(path.name for path in files) or 'no file'}.",
                "Give one file of rows, or a folder with train.jsonl and maybe validation.jsonl and test.jsonl.",
            )
        named["train"] = files
    return {name: found for name, found in named.items() if found}


def _named(rows: Iterator[dict[str, Any]], path: Path) -> Iterator[dict[str, Any]]:
    """The same rows; errors name the file as it is called, not where its copy lies."""
    try:
        yield from rows
    except DataError as error:
        message = error.message.replace(f"{path.parent}/", "")
        raise DataError(message if path.name in message else f"{path.name}: {message}", error.hint) from error


def _rows(path: Path, config: RowsConfig, counts: dict[str, int]) -> Iterator[dict[str, Any]]:
    found = read_rows(path, config.on_broken)
    counts["broken"] += len(found.broken)
    as_rows = FORMATS.get(config.task, as_it_is)
    for row in found.table.to_pylist():
        counts["rows_in"] += 1
        try:
            yield as_rows(renamed(row, config.columns))
        except DataError:
            if config.on_broken == "error":
                raise
            counts["broken"] += 1


def _split_of(
    given: str, key: bytes, config: RowsConfig, files: Mapping[str, Any], seed: int
) -> str:  # fmt: skip
    if given != "train":
        return given
    drawn = int.from_bytes(hashlib.blake2b(key, digest_size=8, key=str(seed).encode()).digest(), "big") / 2**64
    if "test" not in files and drawn < config.test_share:
        return "test"
    return "validation" if "validation" not in files and drawn >= 1.0 - config.validation_share else "train"


def _asked(row: Mapping[str, Any], key: bytes) -> bytes:
    """What rows that must not be split apart have in common: their prompt, else nothing but themselves."""
    return _key(row["prompt"]) if row.get("prompt") else key


def _key(row: Any) -> bytes:
    text = json.dumps(row, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


plugin = Rows()
