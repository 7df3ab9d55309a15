"""Llama family (Llama 1-3, SmolLM): grouped-query attention, rotary positions, RMSNorm, SwiGLU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from danlu.models.archs._decoder import Decoder, read_attention, read_decoder, read_feedforward
from danlu.models.archs._gguf import halves_to_pairs, pairs_to_halves
from danlu.models.archs._keys import Keys
from danlu.models.attention import AttentionConfig
from danlu.models.network import ModelConfig


class Llama(Decoder):
    """Maps Llama checkpoints onto the core."""

    model_type = "llama"
    gguf = "llama"

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        keys.fixed(pretraining_tp=1, rope_interleaved=False, quantization_config=None)
        keys.harmless("max_sequence_length")
        has_bias = keys.flag("attention_bias", False)
        attention = read_attention(keys, bias=has_bias, out_bias=has_bias)
        return read_decoder(keys, [attention] * keys.integer("num_hidden_layers"), read_feedforward(keys))

    def weight_from_gguf(self, name: str, weight: Tensor, config: ModelConfig) -> Tensor:
        """GGUF keeps rotary pairs side by side in query and key rows; checkpoints keep halves apart."""
        heads = _rotary_heads(name, config)
        return weight if heads is None else pairs_to_halves(weight, heads)

    def weight_to_gguf(self, name: str, weight: Tensor, config: ModelConfig) -> Tensor:
        """The inverse."""
        heads = _rotary_heads(name, config)
        return weight if heads is None else halves_to_pairs(weight, heads)


def _rotary_heads(name: str, config: ModelConfig) -> int | None:
    """Heads of a projection whose output is turned by positions."""
    attention = config.stack.layers[0].mixer
    assert isinstance(attention, AttentionConfig)
    if ".q_proj." in name:
        return attention.num_heads
    return attention.num_kv_heads if ".k_proj." in name else None


plugin = Llama()
