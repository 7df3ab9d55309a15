"""Qwen3-Next: three Gated DeltaNet layers to one gated attention layer, experts, zero-centred norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.core.errors import ModelError
from danlu.models.archs._decoder import read_attention, read_decoder
from danlu.models.archs._experts import ExpertDecoder, qwen_feedforwards
from danlu.models.archs._keys import Keys
from danlu.models.block import MixerConfig
from danlu.models.delta import DeltaConfig
from danlu.models.network import ModelConfig
from danlu.models.norms import NormConfig
from danlu.models.weights import Source, rows

_ROTARY_SHARE = 0.25
"""Share of each head that is turned where the config does not say."""


class Qwen3Next(ExpertDecoder):
    """Maps Qwen3-Next checkpoints onto the core."""

    model_type = "qwen3_next"
    unused = (r"mtp\..*",)

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        if "partial_rotary_factor" not in {**theirs, **(theirs.get("rope_parameters") or {})}:
            theirs = {**theirs, "partial_rotary_factor": _ROTARY_SHARE}
        keys = Keys(theirs)
        keys.fixed(hidden_act="silu", use_sliding_window=False, quantization_config=None)
        has_bias = keys.flag("attention_bias", False)
        mixers: dict[str, MixerConfig] = {
            "linear_attention": _delta(keys),
            "full_attention": read_attention(keys, bias=has_bias, out_bias=has_bias, qk_norm="head", gated=True),
        }
        kinds = [mixers[kind] for kind in _layer_types(keys, mixers)]
        feedforwards = qwen_feedforwards(keys, normalise=True, has_shared=True)
        norm = NormConfig(kind="rms", epsilon=keys.number("rms_norm_eps", 1e-6), unit_offset=True)
        return read_decoder(keys, kinds, feedforwards, norm=norm, context_length=32_768)

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """What DeltaNet layers project is one linear of ours, and so are gate and up."""
        names = super().weights(config)
        for layer, wanted in enumerate(config.stack.layers):
            if isinstance(wanted.mixer, DeltaConfig):
                ours, theirs = f"stack.blocks.{layer}.mixer.inner", f"model.layers.{layer}.linear_attn"
                names |= delta_weights(ours, theirs, wanted.mixer)
        return names


def delta_weights(ours: str, theirs: str, config: DeltaConfig) -> dict[str, Source]:
    """Names of one DeltaNet layer's weights."""
    shape = (config.conv_channels, 1, config.conv_width)
    return {
        f"{ours}.into.weight": rows(f"{theirs}.in_proj_qkvz.weight", f"{theirs}.in_proj_ba.weight"),
        f"{ours}.convolution.weight": Source((f"{theirs}.conv1d.weight",), shape=shape),
        f"{ours}.step_bias": rows(f"{theirs}.dt_bias"),
        f"{ours}.log_rate": rows(f"{theirs}.A_log"),
        f"{ours}.norm.weight": rows(f"{theirs}.norm.weight"),
        f"{ours}.out.weight": rows(f"{theirs}.out_proj.weight"),
    }


def _delta(keys: Keys) -> DeltaConfig:
    return DeltaConfig(
        num_key_heads=keys.integer("linear_num_key_heads", 16),
        num_value_heads=keys.integer("linear_num_value_heads", 32),
        key_width=keys.integer("linear_key_head_dim", 128),
        value_width=keys.integer("linear_value_head_dim", 128),
        conv_width=keys.integer("linear_conv_kernel_dim", 4),
    )


def _layer_types(keys: Keys, known: Mapping[str, MixerConfig]) -> list[str]:
    """Named one by one, or every so many layers attention."""
    count, period = keys.integer("num_hidden_layers"), keys.integer("full_attention_interval", 4)
    regular = ["full_attention" if (layer + 1) % period == 0 else "linear_attention" for layer in range(count)]
    kinds = keys.get("layer_types", regular)
    if len(kinds) != count or not set(kinds) <= set(known):
        raise ModelError(
            f"config.json: layer_types is {kinds!r}.", f"It must name {count} layers, each one of {', '.join(known)}."
        )
    return list(kinds)


plugin = Qwen3Next()
