"""Mamba-2 (Dao & Gu 2024): state-space layers alone, no attention and no feed-forward."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from danlu.core.errors import ModelError
from danlu.models.archs import Architecture
from danlu.models.archs._decoder import decoder_head, head_weights
from danlu.models.archs._keys import Keys
from danlu.models.block import LayerConfig, StackConfig
from danlu.models.inputs.tokens import TokensConfig
from danlu.models.mamba import Mamba2Config
from danlu.models.network import ModelConfig, TowerConfig
from danlu.models.norms import NormConfig
from danlu.models.weights import Source, rows

_CONTEXT = 1 << 20
"""Rows have no natural end: a state costs the same however long they are."""


class Mamba2(Architecture):
    """Maps Mamba-2 checkpoints onto the core."""

    model_type = "mamba2"
    prefix = "backbone."

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        keys.fixed(hidden_act="silu", rms_norm=True, quantization_config=None)
        # How weights are first set, how a row is cut, number types; norm_before_gate was never read by its library.
        keys.harmless("time_step_rank", "time_step_min", "time_step_max", "time_step_floor", "time_step_init_scheme")
        keys.harmless("rescale_prenorm_residual", "chunk_size", "residual_in_fp32", "norm_before_gate")
        width = keys.integer("hidden_size")
        mixer = Mamba2Config(
            num_heads=keys.integer("num_heads"),
            head_width=keys.integer("head_dim"),
            state_width=keys.integer("state_size"),
            num_groups=keys.integer("n_groups", 8),
            conv_width=keys.integer("conv_kernel", 4),
            conv_bias=keys.flag("use_conv_bias", True),
            bias=keys.flag("use_bias", False),
            step_limit=_step_limit(keys),
        )
        inner = keys.number("expand", 2.0) * width
        if keys.integer("intermediate_size", int(inner)) != inner or mixer.inner_width != inner:
            raise ModelError(
                f"config.json: {mixer.num_heads} heads of {mixer.head_width} are not expand × hidden_size = {inner:g}.",
                "Copy the model's own config.json.",
            )
        stack = StackConfig(
            width=width,
            layers=(LayerConfig(mixer=mixer),) * keys.integer("num_hidden_layers"),
            norm=NormConfig(kind="rms", epsilon=keys.number("layer_norm_epsilon", 1e-5)),
            context_length=keys.integer("max_position_embeddings", _CONTEXT),
        )
        tokens = TokensConfig(vocabulary_size=keys.integer("vocab_size"), width=width)
        head = decoder_head(keys, tied=False)
        keys.done()
        return ModelConfig(tower=TowerConfig(input=tokens, stack=stack), head=head)

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """One tensor of theirs is one of ours."""
        names = {
            "embedding.tokens.weight": rows("backbone.embeddings.weight"),
            "stack.norm.weight": rows("backbone.norm_f.weight"),
        }
        for layer, wanted in enumerate(config.stack.layers):
            assert isinstance(wanted.mixer, Mamba2Config)
            ours, theirs = f"stack.blocks.{layer}.mixer", f"backbone.layers.{layer}"
            names[f"{ours}.input_norm.weight"] = rows(f"{theirs}.norm.weight")
            names |= mixer_weights(f"{ours}.inner", f"{theirs}.mixer", wanted.mixer)
        return names | head_weights(config)

    def copies(self, config: ModelConfig) -> Mapping[str, str]:
        """Tied checkpoints may store the head again."""
        return {"lm_head.weight": "backbone.embeddings.weight"} if config.is_tied else {}


def mixer_weights(ours: str, theirs: str, config: Mamba2Config) -> dict[str, Source]:
    """Names of one layer's weights."""
    shape = (config.conv_channels, 1, config.conv_width)
    names = {
        f"{ours}.into.weight": rows(f"{theirs}.in_proj.weight"),
        f"{ours}.convolution.weight": Source((f"{theirs}.conv1d.weight",), shape=shape),
        f"{ours}.step_bias": rows(f"{theirs}.dt_bias"),
        f"{ours}.log_rate": rows(f"{theirs}.A_log"),
        f"{ours}.skip": rows(f"{theirs}.D"),
        f"{ours}.norm.weight": rows(f"{theirs}.norm.weight"),
        f"{ours}.out.weight": rows(f"{theirs}.out_proj.weight"),
    }
    if config.conv_bias:
        names[f"{ours}.convolution.bias"] = rows(f"{theirs}.conv1d.bias")
    if config.bias:
        names[f"{ours}.into.bias"] = rows(f"{theirs}.in_proj.bias")
        names[f"{ours}.out.bias"] = rows(f"{theirs}.out_proj.bias")
    return names


def _step_limit(keys: Keys) -> tuple[float, float]:
    """Infinity is no JSON: newer checkpoints write {"__float__": "Infinity"}, older ones a bare Infinity."""
    limit = keys.get("time_step_limit", (0.0, math.inf))
    try:
        bounds = [bound["__float__"] if isinstance(bound, Mapping) else bound for bound in limit]
        low, high = (float(bound) for bound in bounds)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"config.json: time_step_limit is {limit!r}.", "It must be two numbers.") from error
    return low, high


plugin = Mamba2()
