"""What recipe stages that fine-tune a model on rows have in common: the splits they read, the model they leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from danlu.core.errors import ConfigError, DataError, TrainError
from danlu.core.events import Events
from danlu.core.files import read_jsonl

if TYPE_CHECKING:
    from danlu.models.model import Model
    from danlu.train.settings import RunConfig
    from danlu.train.world import World

Items = TypeVar("Items", bound=Sequence[Any])
DATA_HELP = "train.jsonl; validation.jsonl, watched, and test.jsonl, scored at the end, if there are any"


def read_split(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of train.jsonl, validation.jsonl and test.jsonl; no rows for the last two where they are missing."""
    paths = {name: folder / f"{name}.jsonl" for name in ("train", "validation", "test")}
    if not paths["train"].is_file():
        raise DataError(f"{folder} has no train.jsonl.", "Give the folder of a stage that makes one.")
    return {name: list(read_jsonl(path)) if path.is_file() else [] for name, path in paths.items()}


def encode_watched(
    encode: Callable[[Sequence[Mapping[str, Any]]], Items], rows: Sequence[Mapping[str, Any]], events: Events
) -> Items | list[Any]:
    """Validation rows as ids. Where none of them can be used the run goes without, and says so."""
    if not rows:
        return []
    try:
        return encode(rows)
    except TrainError as error:
        events.say(f"Nothing is validated, for of {len(rows)} validation rows none can be used: {error.message}")
        return []


def check_whole(config: RunConfig) -> None:
    """Refuse what cannot end as a whole model."""
    if config.int8_base:
        raise ConfigError(
            "int8_base is true, but this stage makes a whole model, which 8-bit weights would round.",
            "Leave it out, or train an adapter with sft.",
        )


def save_tuned(model: Model, config: RunConfig, folder: Path, world: World) -> Mapping[str, float]:
    """Write a whole model folder; adapters become part of the weights, and what that changed is told. Of several
    processes the first one writes: after a run with spread weights it alone has them."""
    if not world.is_first:
        return {}
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
