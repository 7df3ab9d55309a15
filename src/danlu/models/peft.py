"""Adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors, and its names for our layers.

A projection is named as in the original checkpoint, whatever our linears fuse. Knows no training and no serving.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from danlu.core.errors import ModelError
from danlu.core.files import read_json_object
from danlu.models.heads.embed import EmbedConfig
from danlu.models.lora import ALL, LoraConfig
from danlu.models.model import Model
from danlu.models.tensors import TensorFiles

PEFT_ROOT = "base_model.model."


class PeftFolder:
    """The files of one adapter. Tensors are read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelError for a folder that holds no whole adapter, or one that would be computed wrongly."""
        path = folder / "adapter_config.json"
        if not path.is_file():
            raise ModelError(f"{folder} has no adapter_config.json.", "Give the folder of a PEFT adapter.")
        theirs = read_json_object(path)
        _check_honoured(path, theirs)
        try:
            self.config = _read_config(theirs)
        except KeyError as error:
            raise ModelError(f"{path} lacks {error.args[0]!r}.", "Copy the adapter again.") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"{path} is damaged: {error}.", "Copy the adapter again.") from error
        weights = folder / "adapter_model.safetensors"
        if not weights.is_file():
            hint = "Copy the adapter again."
            if (folder / "adapter_model.bin").is_file():
                hint = "adapter_model.bin is a pickle, which can run code, so it is never read. Save it as safetensors."
            raise ModelError(f"{folder} has no adapter_model.safetensors.", hint)
        self.base = str(theirs.get("base_model_name_or_path") or "")
        """What its makers called the model that it was trained on."""
        self.tensors = TensorFiles([weights])

    def read_all(self) -> dict[str, Tensor]:
        """Every tensor under PEFT's name."""
        return {name: self.tensors.read(name) for name in self.tensors.names()}


_HONOURED: dict[str, Any] = {
    "peft_type": "LORA", "bias": "none", "lora_bias": False, "layer_replication": None, "target_parameters": None,
    "trainable_token_indices": None, "alora_invocation_tokens": None, "use_qalora": False, "use_bdlora": None,
    "arrow_config": None, "kasa_config": None, "velora_config": None, "monteclora_config": None,
}  # fmt: skip
"""Keys of adapter_config.json that change the model, and the only value of each that is honoured."""
_MOVES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that leave a base of their own, which the adapter does not carry."""


def _check_honoured(path: Path, theirs: Mapping[str, Any]) -> None:
    """Raise ModelError for what would be computed wrongly."""
    for key, value in _HONOURED.items():
        if theirs.get(key, value) not in (value, None):
            raise ModelError(f"{path}: {key} is {theirs[key]!r}.", f"Only {value!r} is supported so far.")
    start = theirs.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_MOVES_THE_BASE):
        raise ModelError(
            f"{path}: init_lora_weights is {start!r}, which changes the base too.",
            "Convert it to plain LoRA with peft (path_initial_model_for_weight_conversion).",
        )


def _read_config(theirs: Mapping[str, Any]) -> LoraConfig:
    """Raises KeyError when a key is missing that has no usual value."""
    named, layers = theirs["target_modules"], theirs.get("layers_to_transform")
    modules = {named} if isinstance(named, str) else set(named)
    excluded = theirs.get("exclude_modules") or ()
    return LoraConfig(
        rank=theirs["r"],
        alpha=theirs["lora_alpha"],
        targets=(ALL,) if modules == {"all-linear"} else tuple(sorted(modules)),
        exclude=(excluded,) if isinstance(excluded, str) else tuple(sorted(excluded)),
        layers=(layers,) if isinstance(layers, int) else tuple(layers) if layers else None,
        ranks=theirs.get("rank_pattern") or {},
        alphas=theirs.get("alpha_pattern") or {},
        rslora=bool(theirs.get("use_rslora")),
        dora=bool(theirs.get("use_dora")),
        dropout=theirs.get("lora_dropout") or 0.0,
    )


def check_fits(expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]) -> None:
    """Shapes of the tensors that a model wants of its adapter, and of those there are; raises ModelError when one is
    missing, unknown or misshapen."""
    wrong = {
        "missing": sorted(expected.keys() - found.keys()),
        "not of this model": sorted(found.keys() - expected.keys()),
        "of another shape": sorted(n for n in expected.keys() & found.keys() if tuple(expected[n]) != tuple(found[n])),
    }
    if any(wrong.values()):
        said = "; ".join(
            f"{len(n)} {what} ({', '.join(n[:3])}{', …' * (len(n) > 3)})" for what, n in wrong.items() if n
        )
        raise ModelError(f"The adapter does not fit this model: {said}.", "Was it trained on another base?")


def bare_prefix(model: Model) -> str:
    """What names of this family begin with and this model's lack, since it has no head."""
    return model.architecture.prefix if isinstance(model.config.head, type(None) | EmbedConfig) else ""


def peft_name(model: Model, theirs: str) -> str:
    """A name of the checkpoint as PEFT writes it: it lacks a prefix where the model has no head."""
    return PEFT_ROOT + theirs.removeprefix(bare_prefix(model))


def copies_of(model: Model) -> Mapping[str, str]:
    """Other names of tensors that are one: the other name → the one by which the checkpoint stores it."""
    return model.architecture.copies(model.config)


def known_names(model: Model) -> set[str]:
    """Every tensor of the checkpoint, tied ones under all their names."""
    sources = model.architecture.weights(model.config).values()
    return {name for source in sources for name in source.names} | copies_of(model).keys()
