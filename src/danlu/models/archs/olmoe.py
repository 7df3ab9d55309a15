"""OLMoE (Muennighoff et al. 2024): many small experts, queries and keys normed over all heads at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.models.archs._decoder import read_attention, read_decoder
from danlu.models.archs._experts import ExpertDecoder
from danlu.models.archs._keys import ACTIVATIONS, Keys
from danlu.models.experts import ExpertsConfig
from danlu.models.network import ModelConfig
from danlu.models.norms import NormConfig


class Olmoe(ExpertDecoder):
    """Maps OLMoE checkpoints onto the core."""

    model_type = "olmoe"

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        keys.fixed(clip_qkv=None, quantization_config=None)
        keys.harmless("output_router_logits", "router_aux_loss_coef")
        has_bias = keys.flag("attention_bias", False)
        attention = read_attention(keys, bias=has_bias, out_bias=has_bias, qk_norm="all")
        experts = ExpertsConfig(
            num_experts=keys.integer("num_experts", keys.get("num_local_experts", 64)),
            top_k=keys.integer("num_experts_per_tok", 8),
            width=keys.integer("intermediate_size"),
            activation=keys.choice("hidden_act", ACTIVATIONS, "silu"),
            normalise=keys.flag("norm_topk_prob", False),
        )
        norm = NormConfig(kind="rms", epsilon=keys.number("rms_norm_eps", 1e-5))
        count = keys.integer("num_hidden_layers")
        return read_decoder(keys, [attention] * count, experts, norm=norm, context_length=4096)


plugin = Olmoe()
