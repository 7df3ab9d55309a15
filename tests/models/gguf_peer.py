"""GGUF files of models of transformers, written as llama.cpp's converter writes them and not as danlu does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.tiny import TEMPLATE, make_tokenizer

VOCABULARY = 420
"""Tokens of the tiny tokenizer."""
NAMES = {"mistral": "llama", "gemma3_text": "gemma3"}
"""Families that GGUF calls by another name."""
_SHARED = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "self_attn.qkv_proj": "attn_qkv", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
_GPT2 = {
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
    "transformer.h": "blk", "lm_head": "output", "ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip


def family_of(peer: PreTrainedModel) -> str:
    """What GGUF calls this model's family."""
    return NAMES.get(peer.config.model_type, peer.config.model_type)


def write_gguf(peer: PreTrainedModel, path: Path) -> Path:
    """The whole file: numbers, tokenizer, fp32 tensors."""
    family = family_of(peer)
    writer = gguf.GGUFWriter(path, family)
    _add_numbers(writer, peer.config, family)
    add_tokenizer(writer)
    for name, factors in rope_tensors(peer.config).items():
        writer.add_tensor(name, factors.numpy())
    for name, weight in stored_tensors(peer).items():
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored_tensors(peer: PreTrainedModel) -> dict[str, Tensor]:
    """Name in the file → tensor as it is stored there."""
    family, tensors = family_of(peer), dict[str, Tensor]()
    for name, weight in peer.named_parameters():  # a tied head is there once
        tensors[_name(name, family)] = _stored(name, weight.detach(), family, peer.config).contiguous()
    return tensors


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """The tiny byte-level tokenizer."""
    tokenizer = make_tokenizer()
    vocabulary = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if index < 3 else 1 for _, index in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_chat_template(TEMPLATE)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)


def _name(name: str, family: str) -> str:
    for theirs, short in (_GPT2 if family == "gpt2" else _SHARED).items():
        name = name.replace(f"{theirs}.", f"{short}.")
    after = "ffn_norm" if family in ("llama", "qwen2", "qwen3", "phi3") else "post_attention_norm"
    return name.replace("post_attention_layernorm", after)


def _stored(name: str, weight: Tensor, family: str, config: Any) -> Tensor:
    if family == "llama" and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
        return torch.stack([halves[:, 0], halves[:, 1]], dim=2).reshape(weight.shape)  # rows shuffled like cards
    if family in ("gemma2", "gemma3") and name.endswith("norm.weight"):
        return weight + 1
    if family == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return weight.t()
    return weight


def rope_tensors(config: Any) -> dict[str, Tensor]:
    """Factors of rotary frequencies, for the two ways of stretching that are kept so."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return {f"rope_factors_{kind}.weight": torch.tensor(rope[f"{kind}_factor"]) for kind in ("long", "short")}
    if rope.get("rope_type") != "llama3":
        return {}
    width, factor = config.head_dim, rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    context, factors = rope["original_max_position_embeddings"], list[float]()
    for channel in range(0, width, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (channel / width)
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return {"rope_freqs.weight": torch.tensor(np.array(factors, dtype=np.float32))}


def _add_numbers(writer: gguf.GGUFWriter, config: Any, family: str) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if family == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    if family != "phi3":
        writer.add_key_length(head_width)
        writer.add_value_length(head_width)
    if family in ("gemma2", "gemma3", "phi3"):
        writer.add_sliding_window(config.sliding_window or 0)
    if family == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    else:
        writer.add_rope_freq_base(rope["full_attention"]["rope_theta"] if family == "gemma3" else rope["rope_theta"])
    if family in ("llama", "phi3"):
        writer.add_rope_dimension_count(int(head_width * rope.get("partial_rotary_factor", 1.0)))
    _add_stretch(writer, config, rope)


def _add_stretch(writer: gguf.GGUFWriter, config: Any, rope: dict[str, Any]) -> None:
    kind = rope.get("rope_type", "default")
    if kind == "longrope":
        original = config.original_max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(original)
        stretch = config.max_position_embeddings / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(stretch) / math.log(original)))
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
