"""Mixtral (Jiang et al. 2024): Mistral with experts, two of eight a token, their weights made to sum to 1."""

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


class Mixtral(Architecture):
    """Maps Mixtral checkpoints onto the core."""

    model_type = "mixtral"
    prefix = "model."
    ignored = (r".*rotary_emb\.inv_freq",)

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        keys.fixed(quantization_config=None, router_jitter_noise=0.0)
        keys.harmless("output_router_logits", "router_aux_loss_coef")
        width, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
        head_width = keys.integer("head_dim", width // heads)
        layer = LayerConfig(
            mixer=AttentionConfig(
                num_heads=heads,
                num_kv_heads=keys.integer("num_key_value_heads", 8),
                head_width=head_width,
                window=keys.get("sliding_window"),
                rotary=read_rope(keys, head_width, base=1_000_000.0),
                dropout=keys.number("attention_dropout", 0.0),
            ),
            feedforward=ExpertsConfig(
                num_experts=keys.integer("num_local_experts", 8),
                top_k=keys.integer("num_experts_per_tok", 2),
                width=keys.integer("intermediate_size"),
                activation=keys.choice("hidden_act", ACTIVATIONS, "silu"),
                normalise=True,
            ),
        )
        stack = StackConfig(
            width=width,
            layers=(layer,) * keys.integer("num_hidden_layers"),
            norm=NormConfig(kind="rms", epsilon=keys.number("rms_norm_eps", 1e-5)),
            context_length=keys.integer("max_position_embeddings"),
        )
        tokens = TokensConfig(vocabulary_size=keys.integer("vocab_size"), width=width)
        head = decoder_head(keys, tied=False)
        keys.done()
        return ModelConfig(tower=TowerConfig(input=tokens, stack=stack), head=head)

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """w1 is the gate, w3 goes up and w2 down."""
        experts = decoder_experts(config, layer="model.layers.{}.block_sparse_moe", into=("w1", "w3"), down="w2")
        return decoder_weights(config) | experts

    def copies(self, config: ModelConfig) -> Mapping[str, str]:
        """Tied checkpoints may store the head again."""
        return {"lm_head.weight": "model.embed_tokens.weight"} if config.is_tied else {}


plugin = Mixtral()
