"""Mixtral (Jiang et al. 2024): Mistral with experts, two of eight a token, their weights made to sum to 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.models.archs._decoder import decoder_weights, read_attention, read_decoder
from danlu.models.archs._experts import ExpertDecoder, decoder_experts
from danlu.models.archs._keys import ACTIVATIONS, Keys
from danlu.models.archs._rope import read_rope
from danlu.models.experts import ExpertsConfig
from danlu.models.network import ModelConfig
from danlu.models.norms import NormConfig
from danlu.models.weights import Source


class Mixtral(ExpertDecoder):
    """Maps Mixtral checkpoints onto the core."""

    model_type = "mixtral"

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        keys.fixed(quantization_config=None, router_jitter_noise=0.0)
        keys.harmless("output_router_logits", "router_aux_loss_coef")
        head_width = keys.integer("head_dim", keys.integer("hidden_size") // keys.integer("num_attention_heads"))
        attention = read_attention(
            keys,
            num_kv_heads=keys.integer("num_key_value_heads", 8),
            window=keys.get("sliding_window"),
            rotary=read_rope(keys, head_width, base=1_000_000.0),
        )
        experts = ExpertsConfig(
            num_experts=keys.integer("num_local_experts", 8),
            top_k=keys.integer("num_experts_per_tok", 2),
            width=keys.integer("intermediate_size"),
            activation=keys.choice("hidden_act", ACTIVATIONS, "silu"),
            normalise=True,
        )
        norm = NormConfig(kind="rms", epsilon=keys.number("rms_norm_eps", 1e-5))
        return read_decoder(keys, [attention] * keys.integer("num_hidden_layers"), experts, norm=norm)

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """w1 is the gate, w3 goes up and w2 down."""
        experts = decoder_experts(config, layer="model.layers.{}.block_sparse_moe", into=("w1", "w3"), down="w2")
        return decoder_weights(config) | experts


plugin = Mixtral()
