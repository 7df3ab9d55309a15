"""Families whose feed-forward layers are experts."""

from __future__ import annotations

from typing import Any

from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    MixtralForSequenceClassification,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)  # fmt: skip

from ..case import Case
from .seq2seq import Pairs

_SIZES: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "num_experts_per_tok": 2, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip

_SWITCH: dict[str, Any] = {
    "vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 24, "num_heads": 4, "num_layers": 4, "num_decoder_layers": 3,
    "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 1, "num_experts": 4, "dropout_rate": 0.0,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
}  # fmt: skip

CASES = {
    "mixtral": Case(
        config=MixtralConfig, peer=MixtralForCausalLM, numbers={**_SIZES, "num_local_experts": 4}, lora=False
    ),
    "mixtral-window": Case(
        config=MixtralConfig,
        peer=MixtralForCausalLM,
        numbers={**_SIZES, "num_local_experts": 8, "num_experts_per_tok": 3, "sliding_window": 6},
        lora=False,
    ),
    "mixtral-classify": Case(
        config=MixtralConfig,
        peer=MixtralForSequenceClassification,
        numbers={**_SIZES, "num_local_experts": 4, "num_labels": 3},
        lora=False,
    ),
    "qwen3-moe": Case(
        config=Qwen3MoeConfig,
        peer=Qwen3MoeForCausalLM,
        numbers={**_SIZES, "num_experts": 8, "moe_intermediate_size": 16, "head_dim": 16, "norm_topk_prob": True},
        lora=False,
    ),
    "qwen3-moe-some-plain": Case(
        config=Qwen3MoeConfig,
        peer=Qwen3MoeForCausalLM,
        numbers={
            **_SIZES, "num_hidden_layers": 4, "num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8,
            "norm_topk_prob": False, "decoder_sparse_step": 2, "mlp_only_layers": [3], "tie_word_embeddings": True,
        },
        lora=False,
    ),
    "olmoe": Case(config=OlmoeConfig, peer=OlmoeForCausalLM, numbers={**_SIZES, "num_experts": 8}, lora=False),
    "olmoe-normalised": Case(
        config=OlmoeConfig,
        peer=OlmoeForCausalLM,
        numbers={**_SIZES, "num_experts": 4, "num_experts_per_tok": 4, "norm_topk_prob": True},
        lora=False,
    ),
    "switch": Case(
        config=SwitchTransformersConfig,
        peer=SwitchTransformersForConditionalGeneration,
        numbers=_SWITCH,
        compare=Pairs(),
    ),
    "switch-router-bias": Case(
        config=SwitchTransformersConfig,
        peer=SwitchTransformersForConditionalGeneration,
        numbers={**_SWITCH, "router_bias": True, "dense_act_fn": "gelu", "num_sparse_encoder_layers": 0},
        compare=Pairs(),
    ),
}  # fmt: skip
