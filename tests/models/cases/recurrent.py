"""Families with recurrent layers: state spaces and linear attention."""

from __future__ import annotations

from typing import Any

from transformers import Mamba2Config, Mamba2ForCausalLM, Mamba2Model, Qwen3NextConfig, Qwen3NextForCausalLM

from tests.models.case import Case

_MAMBA2: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 3, "num_heads": 4, "head_dim": 8, "state_size": 6,
    "n_groups": 2, "chunk_size": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_QWEN3_NEXT: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "linear_key_head_dim": 8,
    "linear_value_head_dim": 12, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "num_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 12, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
    # a memory of one token answers near zero; without this the norm after it would blow up rounding errors of 8 bits
    "rms_norm_eps": 0.01,
}  # fmt: skip


def mamba2(peer: Any = Mamba2ForCausalLM, **changes: Any) -> Case:
    """Mamba-2 of some size; peft refuses adapters on the linears of its layers."""
    return Case(config=Mamba2Config, peer=peer, numbers={**_MAMBA2, **changes}, lora=False)


def qwen3_next(**changes: Any) -> Case:
    """Qwen3-Next of some size; peft looks for experts in each of them, and warns where there are none."""
    return Case(config=Qwen3NextConfig, peer=Qwen3NextForCausalLM, numbers={**_QWEN3_NEXT, **changes}, lora=False)


CASES: dict[str, Case] = {
    "mamba2": mamba2(),
    "mamba2-tied": mamba2(tie_word_embeddings=True, n_groups=1, use_conv_bias=False, conv_kernel=3),
    "mamba2-model": mamba2(Mamba2Model, expand=4, head_dim=16),
    "qwen3-next": qwen3_next(),
    "qwen3-next-some-plain": qwen3_next(
        mlp_only_layers=[1],
        decoder_sparse_step=2,
        norm_topk_prob=False,
        layer_types=["full_attention", "linear_attention"] * 2,
    ),
    "qwen3-next-plain": qwen3_next(
        mlp_only_layers=[0, 1, 2, 3], tie_word_embeddings=True, linear_num_value_heads=2, attention_bias=True
    ),
}
