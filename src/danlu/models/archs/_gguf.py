"""GGUF's words for what config.json says. Knows the words all decoder families share; a family adds its own.

Keys and tensor names are those of llama.cpp's converter. What it leaves to the reading program (an activation, which
layers have a window) is what a config.json that does not speak of it means.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from danlu.core.errors import ModelError, nearest
from danlu.models.attention import AttentionConfig
from danlu.models.feedforward import FeedForwardConfig
from danlu.models.heads.lm import LMHeadConfig
from danlu.models.network import ModelConfig
from danlu.models.positions import RopeScaling, RotaryConfig, frequencies

FREQUENCIES, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"

SHARED = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
"""Key in a GGUF file, without the family's name → key of config.json."""

_OPTIONAL = {
    "attention.head_count_kv", "attention.key_length", "attention.sliding_window", "rope.freq_base",
    "rope.freq_base_swa", "attn_logit_softcapping", "final_logit_softcapping",
}  # fmt: skip
_READ_ELSEWHERE = {
    "vocab_size", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.finetuned",
    "rope.scaling.original_context_length", "rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow", "attention.value_length", "tensor_data_layout",
}  # fmt: skip


def config_of(
    metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], family: str, names: Mapping[str, str]
) -> dict[str, Any]:
    """The numbers of a GGUF file under their names in config.json; raises ModelError when one is missing, or when one
    changes the model and has no place there."""
    found = {key.removeprefix(f"{family}."): _plain(value) for key, value in metadata.items() if _is_of(key, family)}
    if unknown := sorted(found.keys() - names.keys() - _READ_ELSEWHERE):
        raise ModelError(f"The GGUF metadata has an unknown key '{family}.{unknown[0]}'.", nearest(unknown[0], names))
    if missing := sorted(names.keys() - found.keys() - _OPTIONAL):
        raise ModelError(f"The GGUF metadata lacks '{family}.{missing[0]}'.", "The file may be damaged.")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None and "vocab_size" not in found:
        raise ModelError("The GGUF metadata lacks 'tokenizer.ggml.tokens'.", "The file may be damaged.")
    theirs: dict[str, Any] = {"vocab_size": found["vocab_size"] if tokens is None else len(tokens)}
    theirs |= {name: found[key] for key, name in names.items() if found.get(key)}  # a window of 0 is none
    heads = found["attention.head_count"]
    if not isinstance(heads, int):
        raise ModelError(f"The GGUF file has layers with {heads} heads.", "They must all have the same number.")
    head_width = found.get("attention.key_length", found["embedding_length"] // heads)
    if found.get("attention.value_length", head_width) != head_width:
        raise ModelError(
            f"The GGUF file has values of width {found['attention.value_length']} and keys of width {head_width}.",
            "Only equal widths are supported so far.",
        )
    if found.get("rope.dimension_count", head_width) != head_width:
        theirs["partial_rotary_factor"] = found["rope.dimension_count"] / head_width
    scaling = _scaling_of(found, tensors)
    return theirs if scaling is None else {**theirs, "rope_scaling": scaling}


def _is_of(key: str, family: str) -> bool:
    return key.startswith(f"{family}.")


def _plain(value: Any) -> Any:
    """GGUF keeps fp32, where 1e-5 is 9.99999975e-06: the shortest number that is the same in fp32."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _scaling_of(found: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    kind, context = found.get("rope.scaling.type", "none"), found["context_length"]
    original = found.get("rope.scaling.original_context_length", context)
    if tensors:
        short, long = (tensors.get(FREQUENCIES, tensors.get(name)) for name in (SHORT, LONG))
        if short is None or long is None:
            raise ModelError(f"The GGUF file lacks {SHORT if short is None else LONG}.", "It may be damaged.")
        return {
            "rope_type": "longrope",
            "short_factor": short.tolist(),
            "long_factor": long.tolist(),
            "factor": context / original,
            "attention_factor": found.get("rope.scaling.attn_factor", 1.0),
            "original_max_position_embeddings": original,
        }
    if kind == "none":
        return None
    if kind not in ("linear", "yarn") or found.get("rope.scaling.attn_factor", 1.0) != 1.0:
        raise ModelError(f"The GGUF file stretches rotary positions by '{kind}'.", "Known: none, linear, yarn.")
    scaling = {"rope_type": kind, "factor": found.get("rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = original
        betas = {name: found.get(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
        scaling |= {name: beta for name, beta in betas.items() if beta is not None}
    return scaling


def metadata_of(
    config: ModelConfig, family: str, names: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:  # fmt: skip
    """The inverse of ``config_of`` as far as these words go: metadata, and tensors with factors of frequencies."""
    if not isinstance(config.head, LMHeadConfig):
        raise ModelError("This model does not write text.", "GGUF files hold language models.")
    mixers = [layer.mixer for layer in config.stack.layers if isinstance(layer.mixer, AttentionConfig)]
    wide = next((mixer for mixer in mixers if mixer.window is None), mixers[0])
    near = next((mixer for mixer in mixers if mixer.window is not None), None)
    feedforward = config.stack.layers[0].feedforward
    assert isinstance(feedforward, FeedForwardConfig)
    numbers: dict[str, Any] = {
        "block_count": config.num_layers,
        "context_length": config.context_length,
        "embedding_length": config.width,
        "feed_forward_length": feedforward.width,
        "attention.head_count": wide.num_heads,
        "attention.head_count_kv": wide.num_kv_heads,
        "attention.key_length": wide.head_width,
        "attention.layer_norm_rms_epsilon": config.stack.norm.epsilon,
        "attention.layer_norm_epsilon": config.stack.norm.epsilon,
        "attention.sliding_window": 0 if near is None else near.window,
        "attn_logit_softcapping": wide.softcap,
        "final_logit_softcapping": config.head.softcap,
    }
    said: dict[str, Any] = {"vocab_size": config.vocabulary_size}
    tensors: dict[str, Tensor] = {}
    if wide.rotary is not None:
        numbers["rope.freq_base"] = wide.rotary.base
        numbers["rope.freq_base_swa"] = None if near is None or near.rotary is None else near.rotary.base
        scaling, tensors = _scaling_to(wide.rotary, config.context_length)
        said |= {"rope.dimension_count": wide.rotary.width, **scaling}
    if "attention.key_length" in names:
        said["attention.value_length"] = wide.head_width
    kept = said | {key: value for key, value in numbers.items() if key in names and value is not None}
    return {f"{family}.{key}": value for key, value in kept.items()}, tensors


def _scaling_to(rotary: RotaryConfig, context: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    scaling = as_factors(rotary, context).scaling
    named = {"rope.scaling.original_context_length": scaling.original_length}
    if scaling.kind == "longrope":
        short, long = torch.tensor(scaling.short_factors), torch.tensor(scaling.long_factors)
        if scaling.short_factors == scaling.long_factors and scaling.attention_factor == 1.0:
            return {}, {FREQUENCIES: short}
        return named | {"rope.scaling.attn_factor": scaling.attention_factor}, {SHORT: short, LONG: long}
    if scaling.kind not in ("linear", "yarn"):
        return {}, {}
    said = {"rope.scaling.type": scaling.kind, "rope.scaling.factor": scaling.factor}
    if scaling.kind == "yarn":
        said |= named
        betas = {"beta_fast": (scaling.beta_fast, 32.0), "beta_slow": (scaling.beta_slow, 1.0)}
        said |= {f"rope.scaling.yarn_{name}": beta for name, (beta, usual) in betas.items() if beta != usual}
    return said, {}


def as_factors(rotary: RotaryConfig, context: int) -> RotaryConfig:
    """llama3's way of stretching as divisors of frequencies, which is how GGUF keeps it."""
    if rotary.scaling.kind != "llama3":
        return rotary
    factors = frequencies(dataclasses.replace(rotary, scaling=RopeScaling())) / frequencies(rotary)
    listed = tuple(factors.tolist())
    scaling = RopeScaling(kind="longrope", original_length=context, short_factors=listed, long_factors=listed)
    return dataclasses.replace(rotary, scaling=scaling)


def spelled(value: Any, context: int) -> Any:
    """A config in the words that GGUF has: nothing about training, fp32 numbers, and ``as_factors`` everywhere."""
    if isinstance(value, RotaryConfig):
        value = as_factors(value, context)
    if isinstance(value, tuple):
        return tuple(spelled(part, context) for part in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return _plain(value)
    parts = {part.name: spelled(getattr(value, part.name), context) for part in dataclasses.fields(value)}
    return dataclasses.replace(value, **{name: 0.0 if name == "dropout" else part for name, part in parts.items()})


@cache
def _names_of(family: str) -> gguf.TensorNameMap:
    """Names of one block; those of the others differ in its number."""
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(kinds[family], 1)


def gguf_name(family: str, name: str) -> str:
    """``model.layers.3.mlp.up_proj.weight`` → ``blk.3.ffn_up.weight``; a name without one there stays as it is."""
    block = re.search(r"\.(\d+)\.", name)
    first = name if block is None else f"{name[: block.start()]}.0.{name[block.end() :]}"
    found = _names_of(family).get_name(first, try_suffixes=(".weight", ".bias"))
    if found is None:
        return name
    return found if block is None else found.replace("blk.0.", f"blk.{block[1]}.")


def pairs_to_halves(weight: Tensor, num_heads: int) -> Tensor:
    """GGUF files of Llama keep rotary pairs side by side in the rows of queries and keys; checkpoints keep halves."""
    return _turned(weight, num_heads, lambda size: (size // 2, 2))


def halves_to_pairs(weight: Tensor, num_heads: int) -> Tensor:
    """The inverse of ``pairs_to_halves``."""
    return _turned(weight, num_heads, lambda size: (2, size // 2))


def _turned(weight: Tensor, num_heads: int, split: Any) -> Tensor:
    head_width, rest = divmod(weight.shape[0], num_heads)
    if rest or head_width % 2:
        return weight  # a tensor of another shape, which the loader refuses by name
    return weight.reshape(num_heads, *split(head_width), -1).transpose(1, 2).reshape(weight.shape)
