"""Qwen3-Next: three Gated DeltaNet layers to one gated attention layer, experts, zero-centred norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.core.errors import ModelError
from danlu.models.archs import Architecture
from danlu.models.archs._decoder import decoder_head, decoder_weights
from danlu.models.archs._experts import decoder_experts, qwen_feedforwards
from danlu.models.archs._keys import Keys
from danlu.models.archs._rope import read_rope
from danlu.models.attention import AttentionConfig
from danlu.models.block import LayerConfig, MixerConfig, StackConfig
from danlu.models.delta import DeltaConfig
from danlu.models.inputs.tokens import TokensConfig
from danlu.models.network import ModelConfig, TowerConfig
from danlu.models.norms import NormConfig
from danlu.models.weights import Source, rows

_ROTARY_SHARE = 0.25
"""Share of each head that is turned where the config does not say."""


class Qwen3Next(Architecture):
    """Maps Qwen3-Next checkpoints onto the core."""

    model_type = "qwen3_next"
    prefix = "model."
    unused = (r"mtp\..*",)

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        if "partial_rotary_factor" not in {**theirs, **(theirs.get("rope_parameters") or {})}:
            theirs = {**theirs, "partial_rotary_factor": _ROTARY_SHARE}
        keys = Keys(theirs)
        keys.fixed(hidden_act="silu", use_sliding_window=False, quantization_config=None)
        width = keys.integer("hidden_size")
        mixers = {"linear_attention": _delta(keys), "full_attention": _attention(keys, width)}
        feedforwards = qwen_feedforwards(keys, normalise=True, has_shared=True)
        layers = tuple(
            LayerConfig(mixer=mixers[kind], feedforward=feedforward)
            for kind, feedforward in zip(_layer_types(keys, mixers), feedforwards, strict=True)
        )
        norm = NormConfig(kind="rms", epsilon=keys.number("rms_norm_eps", 1e-6), unit_offset=True)
        context_length = keys.integer("max_position_embeddings", 32_768)
        stack = StackConfig(width=width, layers=layers, norm=norm, context_length=context_length)
        tokens = TokensConfig(vocabulary_size=keys.integer("vocab_size"), width=width)
        head = decoder_head(keys, tied=False)
        keys.done()
        return ModelConfig(tower=TowerConfig(input=tokens, stack=stack), head=head)

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """What DeltaNet layers project is one linear of ours, and so are gate and up."""
        names = decoder_weights(config) | decoder_experts(config)
        for layer, wanted in enumerate(config.stack.layers):
            if isinstance(wanted.mixer, DeltaConfig):
                ours, theirs = f"stack.blocks.{layer}.mixer.inner", f"model.layers.{layer}.linear_attn"
                names |= delta_weights(ours, theirs, wanted.mixer)
        return names

    def copies(self, config: ModelConfig) -> Mapping[str, str]:
        """Tied checkpoints may store the head again."""
        return {"lm_head.weight": "model.embed_tokens.weight"} if config.is_tied else {}


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


def _attention(keys: Keys, width: int) -> AttentionConfig:
    heads = keys.integer("num_attention_heads")
    head_width = keys.integer("head_dim", width // heads)
    has_bias = keys.flag("attention_bias", False)
    return AttentionConfig(
        num_heads=heads,
        num_kv_heads=keys.integer("num_key_value_heads", heads),
        head_width=head_width,
        bias=has_bias,
        out_bias=has_bias,
        qk_norm="head",
        gated=True,
        rotary=read_rope(keys, head_width),
        dropout=keys.number("attention_dropout", 0.0),
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
