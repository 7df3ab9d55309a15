"""What recipe stages that fine-tune a model on rows have in common: the splits they read, the model they leave."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.core.errors import ConfigError, DataError
from danlu.core.files import read_jsonl

if TYPE_CHECKING:
    from danlu.models.model import Model
    from danlu.train.settings import RunConfig

DATA_HELP = "train.jsonl; validation.jsonl, watched, and test.jsonl, scored at the end, if there are any"


def read_split(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of train.jsonl, validation.jsonl and test.jsonl; no rows for the last two where they are missing."""
    paths = {name: folder / f"{name}.jsonl" for name in ("train", "validation", "test")}
    if not paths["train"].is_file():
        raise DataError(f"{folder} has no train.jsonl.", "Give the folder of a stage that makes one.")
    return {name: list(read_jsonl(path)) if path.is_file() else [] for name, path in paths.items()}


def check_whole(config: RunConfig) -> None:
    """Refuse what cannot end as a whole model."""
    if config.int8_base:
        raise ConfigError(
            "int8_base is true, but this stage makes a whole model, which 8-bit weights would round.",
            "Leave it out, or train an adapter with sft.",
        )
    if config.parallel == "fsdp":
        raise ConfigError(
            "parallel is fsdp, but this stage scores the model when training is done, which spread weights cannot do.",
            "Use parallel: ddp.",
        )


def save_tuned(model: Model, config: RunConfig, folder: Path) -> Mapping[str, float]:
    """Write a whole model folder; adapters become part of the weights, and what that changed is told."""
    from danlu.models.save import save_model
    from danlu.train.merge import merge_lora, round_weights

    changes = dict[str, float]()
    if config.lora is not None:
        merged = merge_lora(model)
        rounding = round_weights(model, model.precision)
        changes = {
            "merged_change": merged.largest_change,
            "merged_rounding": max(merged.largest_rounding, rounding),
        }
    save_model(model, folder)
    return changes
