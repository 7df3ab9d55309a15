"""Qwen3-MoE (Yang et al. 2025): Qwen3 with experts in most layers; queries and keys normed head by head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.models.archs import Architecture
from danlu.models.archs._decoder import decoder_head, decoder_weights
from danlu.models.archs._experts import decoder_experts, qwen_feedforwards
from danlu.models.archs._keys import Keys
from danlu.models.archs._rope import read_rope
from danlu.models.attention import AttentionConfig
from danlu.models.block import LayerConfig, StackConfig
from danlu.models.inputs.tokens import TokensConfig
from danlu.models.network import ModelConfig, TowerConfig
from danlu.models.norms import NormConfig
from danlu.models.weights import Source


class Qwen3Moe(Architecture):
    """Maps Qwen3-MoE checkpoints onto the core."""

    model_type = "qwen3_moe"
    prefix = "model."

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        keys.fixed(use_sliding_window=False, quantization_config=None)
        keys.harmless("sliding_window", "max_window_layers")
        width, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
        head_width = keys.integer("head_dim", width // heads)
        has_bias = keys.flag("attention_bias", False)
        attention = AttentionConfig(
            num_heads=heads,
            num_kv_heads=keys.integer("num_key_value_heads", 4),
            head_width=head_width,
            bias=has_bias,
            out_bias=has_bias,
            qk_norm="head",
            rotary=read_rope(keys, head_width),
            dropout=keys.number("attention_dropout", 0.0),
        )
        inner = qwen_feedforwards(keys, normalise=False)
        stack = StackConfig(
            width=width,
            layers=tuple(LayerConfig(mixer=attention, feedforward=one) for one in inner),
            norm=NormConfig(kind="rms", epsilon=keys.number("rms_norm_eps", 1e-6)),
            context_length=keys.integer("max_position_embeddings"),
        )
        tokens = TokensConfig(vocabulary_size=keys.integer("vocab_size"), width=width)
        head = decoder_head(keys, tied=False)
        keys.done()
        return ModelConfig(tower=TowerConfig(input=tokens, stack=stack), head=head)

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """Queries, keys and values are one tensor of ours, and so are the experts of a layer."""
        return decoder_weights(config) | decoder_experts(config)

    def copies(self, config: ModelConfig) -> Mapping[str, str]:
        """Tied checkpoints may store the head again."""
        return {"lm_head.weight": "model.embed_tokens.weight"} if config.is_tied else {}


plugin = Qwen3Moe()
