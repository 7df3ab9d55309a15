"""OLMoE (Muennighoff et al. 2024): many small experts, queries and keys normed over all heads at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.models.archs import Architecture
from danlu.models.archs._decoder import decoder_head, decoder_weights
from danlu.models.archs._experts import decoder_experts
from danlu.models.archs._keys import ACTIVATIONS, Keys
from danlu.models.archs._rope import read_rope
from danlu.models.attention import AttentionConfig
from danlu.models.block import LayerConfig, StackConfig
from danlu.models.experts import ExpertsConfig
from danlu.models.inputs.tokens import TokensConfig
from danlu.models.network import ModelConfig, TowerConfig
from danlu.models.norms import NormConfig
from danlu.models.weights import Source


class Olmoe(Architecture):
    """Maps OLMoE checkpoints onto the core."""

    model_type = "olmoe"
    prefix = "model."

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        keys.fixed(clip_qkv=None, quantization_config=None)
        keys.harmless("output_router_logits", "router_aux_loss_coef")
        width, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
        has_bias = keys.flag("attention_bias", False)
        layer = LayerConfig(
            mixer=AttentionConfig(
                num_heads=heads,
                num_kv_heads=keys.integer("num_key_value_heads", heads),
                head_width=width // heads,
                bias=has_bias,
                out_bias=has_bias,
                qk_norm="all",
                rotary=read_rope(keys, width // heads),
                dropout=keys.number("attention_dropout", 0.0),
            ),
            feedforward=ExpertsConfig(
                num_experts=keys.integer("num_experts", keys.get("num_local_experts", 64)),
                top_k=keys.integer("num_experts_per_tok", 8),
                width=keys.integer("intermediate_size"),
                activation=keys.choice("hidden_act", ACTIVATIONS, "silu"),
                normalise=keys.flag("norm_topk_prob", False),
            ),
        )
        stack = StackConfig(
            width=width,
            layers=(layer,) * keys.integer("num_hidden_layers"),
            norm=NormConfig(kind="rms", epsilon=keys.number("rms_norm_eps", 1e-5)),
            context_length=keys.integer("max_position_embeddings", 4096),
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


plugin = Olmoe()
