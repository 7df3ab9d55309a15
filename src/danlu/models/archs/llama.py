"""Llama family (Llama 1-3, SmolLM): grouped-query attention, rotary positions, RMSNorm, SwiGLU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from danlu.core.errors import ModelError, nearest
from danlu.models.config import CoreConfig

# Keys that change the model and the only value of each that this file honours.
_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rope_scaling": None,
    "pretraining_tp": 1,
    "attention_dropout": 0.0,
    "rope_interleaved": False,
    "quantization_config": None,
}
# Keys that do not change what the model computes, or that another part of danlu reads.
_HARMLESS = {
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "use_cache", "initializer_range",
    "is_llama_config", "bos_token_id", "eos_token_id", "pad_token_id", "_name_or_path", "transformers.js_config",
}  # fmt: skip
_MAPPED = {
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_parameters",
    "tie_word_embeddings",
}  # fmt: skip


class Llama:
    """Maps Llama checkpoints onto the core."""

    model_type = "llama"

    def read_config(self, theirs: Mapping[str, Any]) -> CoreConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        for key, value in theirs.items():
            if key in _FIXED and value != _FIXED[key]:
                raise ModelError(f"config.json: {key} is {value!r}.", f"Only {_FIXED[key]!r} is supported so far.")
            if key not in _FIXED and key not in _HARMLESS and key not in _MAPPED:
                raise ModelError(f"config.json has an unknown key '{key}'.", nearest(key, _MAPPED | set(_FIXED)))
        rope = theirs.get("rope_parameters") or {}
        if rope.get("rope_type", "default") != "default":
            raise ModelError(f"config.json: rope_type is {rope['rope_type']!r}.", "Only 'default' is supported so far.")
        try:
            heads, width = theirs["num_attention_heads"], theirs["hidden_size"]
            return CoreConfig(
                vocabulary_size=theirs["vocab_size"],
                width=width,
                num_layers=theirs["num_hidden_layers"],
                num_heads=heads,
                num_kv_heads=theirs.get("num_key_value_heads", heads),
                head_width=theirs.get("head_dim") or width // heads,
                feedforward_width=theirs["intermediate_size"],
                context_length=theirs["max_position_embeddings"],
                norm_epsilon=theirs["rms_norm_eps"],
                rope_base=float(rope.get("rope_theta") or theirs.get("rope_theta", 10_000.0)),
                tied_head=theirs.get("tie_word_embeddings", False),
            )
        except KeyError as error:
            raise ModelError(f"config.json lacks {error.args[0]!r}.", "Copy the model's whole config.json.") from error

    def write_config(self, config: CoreConfig) -> dict[str, Any]:
        """A config.json for transformers' LlamaForCausalLM."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": self.model_type,
            "vocab_size": config.vocabulary_size,
            "hidden_size": config.width,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_kv_heads,
            "head_dim": config.head_width,
            "intermediate_size": config.feedforward_width,
            "max_position_embeddings": config.context_length,
            "rms_norm_eps": config.norm_epsilon,
            "rope_theta": config.rope_base,
            "tie_word_embeddings": config.tied_head,
            "hidden_act": "silu",
        }

    def weight_names(self, config: CoreConfig) -> dict[str, tuple[str, ...]]:
        """Queries, keys and values are one tensor of ours, and so are gate and up."""
        names: dict[str, tuple[str, ...]] = {"embedding.weight": ("model.embed_tokens.weight",)}
        for layer in range(config.num_layers):
            ours, theirs = f"stack.blocks.{layer}", f"model.layers.{layer}"
            names |= {
                f"{ours}.attention_norm.weight": (f"{theirs}.input_layernorm.weight",),
                f"{ours}.attention.qkv.weight": tuple(f"{theirs}.self_attn.{x}_proj.weight" for x in "qkv"),
                f"{ours}.attention.out.weight": (f"{theirs}.self_attn.o_proj.weight",),
                f"{ours}.feedforward_norm.weight": (f"{theirs}.post_attention_layernorm.weight",),
                f"{ours}.feedforward.gate_up.weight": tuple(f"{theirs}.mlp.{x}_proj.weight" for x in ("gate", "up")),
                f"{ours}.feedforward.down.weight": (f"{theirs}.mlp.down_proj.weight",),
            }
        names["stack.norm.weight"] = ("model.norm.weight",)
        if not config.tied_head:
            names["head.weight"] = ("lm_head.weight",)
        return names

    def config_from_gguf(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Raises ModelError when a number is missing."""
        try:
            heads = metadata["llama.attention.head_count"]
            width = metadata["llama.embedding_length"]
            return {
                "model_type": self.model_type,
                "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
                "hidden_size": width,
                "num_hidden_layers": metadata["llama.block_count"],
                "num_attention_heads": heads,
                "num_key_value_heads": metadata.get("llama.attention.head_count_kv", heads),
                "head_dim": metadata.get("llama.attention.key_length", width // heads),
                "intermediate_size": metadata["llama.feed_forward_length"],
                "max_position_embeddings": metadata["llama.context_length"],
                "rms_norm_eps": float(f"{metadata['llama.attention.layer_norm_rms_epsilon']:.6g}"),
                "rope_theta": metadata.get("llama.rope.freq_base", 10_000.0),
                "rope_scaling": metadata.get("llama.rope.scaling.type"),
            }
        except KeyError as error:
            raise ModelError(f"The GGUF metadata lacks {error.args[0]!r}.", "The file may be damaged.") from error

    def gguf_name(self, name: str) -> str:
        """``model.layers.3.mlp.up_proj.weight`` → ``blk.3.ffn_up.weight``."""
        for theirs, gguf in _GGUF_NAMES.items():
            name = name.replace(theirs, gguf)
        return name

    def weight_from_gguf(self, name: str, weight: Tensor, config: CoreConfig) -> Tensor:
        """GGUF keeps rotary pairs side by side in query and key rows; checkpoints keep halves apart."""
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
        for projection, count in heads.items():
            if projection in name:
                pairs = weight.view(count, config.head_width // 2, 2, weight.shape[1])
                return pairs.transpose(1, 2).reshape(weight.shape)
        return weight


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.layers.": "blk.",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

plugin = Llama()
