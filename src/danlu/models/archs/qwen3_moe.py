"""Qwen3-MoE (Yang et al. 2025): Qwen3 with experts in most layers; queries and keys normed head by head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.models.archs._decoder import read_attention, read_decoder
from danlu.models.archs._experts import ExpertDecoder, qwen_feedforwards
from danlu.models.archs._keys import Keys
from danlu.models.network import ModelConfig


class Qwen3Moe(ExpertDecoder):
    """Maps Qwen3-MoE checkpoints onto the core."""

    model_type = "qwen3_moe"

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        keys.fixed(use_sliding_window=False, quantization_config=None)
        keys.harmless("sliding_window", "max_window_layers")
        has_bias = keys.flag("attention_bias", False)
        kv_heads = keys.integer("num_key_value_heads", 4)
        attention = read_attention(keys, num_kv_heads=kv_heads, bias=has_bias, out_bias=has_bias, qk_norm="head")
        feedforwards = qwen_feedforwards(keys, normalise=False)
        return read_decoder(keys, [attention] * len(feedforwards), feedforwards)


plugin = Qwen3Moe()
