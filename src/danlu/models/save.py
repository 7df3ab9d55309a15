"""Models out, as folders in Hugging Face layout with danlu.json beside config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from danlu.core.files import write_json
from danlu.models.licence import write_licence
from danlu.models.linear import rows_of_parts
from danlu.models.load import COLUMN_SCALE_SUFFIX, SCALE_SUFFIX
from danlu.models.model import Model
from danlu.models.sentence import write_sentence
from danlu.models.tensors import save_tensors
from danlu.text.chat import ChatFormat


def save_model(model: Model, folder: Path, notes: Mapping[str, Any] | None = None) -> int:
    """Write a model folder, the licence it came with included; returns the bytes of its weights file. ``notes`` go into
    danlu.json."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    save_tensors(checkpoint(model), weights)
    config = {**model.theirs, "torch_dtype": str(model.activation_dtype).removeprefix("torch.")}
    config.pop("dtype", None)  # the newer name of the same key
    special: dict[str, Any] = {}
    if model.has_tokenizer:
        tokenizer = model.chat.tokenizer
        ends = sorted(tokenizer.end_ids)
        special = {"bos_token_id": tokenizer.begin_id, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
        config |= special
        _save_tokenizer(model.chat, folder, has_types=model.has_token_types)
    quantization = {"quantization": {"scheme": model.scheme, "granularity": "row"}} if model.scheme else {}
    write_json(folder / "config.json", config)
    ends = sorted(model.generation.end_ids | set(_as_list(special.get("eos_token_id"))))
    generation = {**model.generation.settings, **{key: value for key, value in special.items() if value is not None}}
    if len(ends) > 1:
        generation["eos_token_id"] = ends
    write_json(folder / "generation_config.json", generation)
    if model.sentence is not None:
        write_sentence(model.sentence, model.config.width, folder)
    write_licence(model.licence, folder)
    write_json(folder / "danlu.json", {"format": 1, **quantization, **(notes or {})})
    return weights.stat().st_size


def _as_list(value: int | list[int] | None) -> list[int]:
    return [] if value is None else value if isinstance(value, list) else [value]


def checkpoint(model: Model) -> dict[str, Tensor]:
    """All weights under the names of the family's checkpoints, int8 ones with their scales."""
    network, state = model.network, model.network.state_dict()
    tensors: dict[str, Tensor] = {}
    for ours, source in model.architecture.weights(model.config).items():
        layer = network.get_submodule(ours.rpartition(".")[0])
        parts = rows_of_parts(layer) if len(source.names) > 1 else ()
        tensors |= source.split(state[ours], parts)
        stem = ours.removesuffix("weight")
        if ours.endswith("weight") and f"{stem}scale" in state:
            scale = state[f"{stem}scale"]
            sizes = [tensors[name].shape[0] if len(source.names) > 1 else scale.shape[0] for name in source.names]
            flat = scale.reshape(-1, 1)
            tensors |= {n + SCALE_SUFFIX: part for n, part in zip(source.names, flat.split(sizes), strict=True)}
        if ours.endswith("weight") and f"{stem}column_scale" in state:
            tensors |= {n + COLUMN_SCALE_SUFFIX: state[f"{stem}column_scale"] for n in source.names}
    return tensors


def _save_tokenizer(chat: ChatFormat, folder: Path, *, has_types: bool) -> None:
    tokenizer = chat.tokenizer
    tokenizer.save(folder)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= tokenizer.roles
    if has_types:
        config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    if tokenizer.end_tokens:
        config["eos_token"] = tokenizer.end_tokens[0]
    if tokenizer.begin_id is not None:
        config["bos_token"] = tokenizer.backend.id_to_token(tokenizer.begin_id)
    if chat.source is not None:
        config["chat_template"] = chat.source
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2), encoding="utf-8")
