"""Decoders: what they write is a language."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.models.case import Case

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Most families call them so."""

FACTORS = [1.0, 1.1, 1.3, 2.0], [1.0, 1.5, 3.0, 8.0]


def decoder(family: str, head: str = "ForCausalLM", gguf: bool = True, **changes: Any) -> Case:
    """A family of transformers by the beginning of its class names."""
    return Case(
        config=getattr(hf, f"{family.removesuffix('Text')}{'Text' * (family == 'Gemma3Text')}Config"),
        peer=getattr(hf, family.removesuffix("Text") + head),
        numbers={**SIZES, **changes},
        gguf=gguf and head in ("ForCausalLM", "LMHeadModel"),
        by_length=changes.get("rope_parameters", {}).get("rope_type") in ("dynamic", "longrope"),
    )


def all_heads(name: str, family: str, **changes: Any) -> dict[str, Case]:
    """A family without a head, with a classifier of rows and with one of tokens."""
    labelled = {"classify": "ForSequenceClassification", "tag": "ForTokenClassification"}
    cases = {f"{name}-{kind}": decoder(family, head, num_labels=3, **changes) for kind, head in labelled.items()}
    return {f"{name}-model": decoder(family, "Model", **changes), **cases}


def rope(kind: str, **numbers: Any) -> dict[str, Any]:
    """Stretched rotary positions."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **numbers}}


GEMMA: dict[str, Any] = {
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 6,
    "attn_implementation": "eager",  # the only one of theirs that caps scores
}
PHI3_LONG = {
    "partial_rotary_factor": 1.0,
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 16,
    **rope("longrope", short_factor=FACTORS[0], long_factor=FACTORS[1]),
}


def gpt2(head: str = "LMHeadModel", gguf: bool = True, **changes: Any) -> Case:
    """GPT-2 has names of its own."""
    own = {
        "vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    peer = getattr(hf, f"GPT2{head}")
    return Case(config=hf.GPT2Config, peer=peer, numbers={**own, **changes}, gguf=gguf and head == "LMHeadModel")


CASES: dict[str, Case] = {
    "llama": decoder("Llama"),
    "llama-tied": decoder("Llama", tie_word_embeddings=True),
    "llama-biased": decoder("Llama", gguf=False, attention_bias=True, mlp_bias=True, head_dim=12),
    "llama-linear": decoder("Llama", **rope("linear", factor=2.0)),
    "llama-dynamic": decoder("Llama", gguf=False, max_position_embeddings=8, **rope("dynamic", factor=2.0)),
    "llama-yarn": decoder("Llama", **rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "llama-3": decoder(
        "Llama",
        **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16),
    ),
    **all_heads("llama", "Llama"),
    "mistral": decoder("Mistral", sliding_window=None),
    "mistral-window": decoder("Mistral", gguf=False, sliding_window=5),
    **all_heads("mistral", "Mistral", sliding_window=5),
    "qwen2": decoder("Qwen2", tie_word_embeddings=True),
    "qwen2-window": decoder("Qwen2", gguf=False, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    **all_heads("qwen2", "Qwen2"),
    "qwen3": decoder("Qwen3", head_dim=16),
    "qwen3-window": decoder(
        "Qwen3", gguf=False, head_dim=16, attention_bias=True, use_sliding_window=True, sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
    ),
    **all_heads("qwen3", "Qwen3", head_dim=16),
    "gemma2": decoder("Gemma2", **GEMMA, num_hidden_layers=3),
    "gemma2-uncapped": decoder(
        "Gemma2", gguf=False, **GEMMA, attn_logit_softcapping=None, final_logit_softcapping=None,
        tie_word_embeddings=False,
    ),
    **all_heads("gemma2", "Gemma2", **GEMMA),
    "gemma3": decoder("Gemma3Text", **GEMMA, num_hidden_layers=7),
    "gemma3-linear": decoder(
        "Gemma3Text", **GEMMA, num_hidden_layers=3, gguf=False,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        },
    ),
    "phi3": decoder("Phi3"),
    "phi3-window": decoder("Phi3", sliding_window=6),
    "phi3-partial": decoder("Phi3", **rope("default", partial_rotary_factor=0.5)),
    "phi3-long": decoder("Phi3", **PHI3_LONG),
    **all_heads("phi3", "Phi3"),
    "olmo2": decoder("Olmo2"),
    "olmo2-biased": decoder("Olmo2", gguf=False, attention_bias=True),
    "olmo2-model": decoder("Olmo2", "Model"),
    "olmo2-classify": decoder("Olmo2", "ForSequenceClassification", num_labels=3),
    "gpt2": gpt2(),
    "gpt2-untied": gpt2(n_inner=40, tie_word_embeddings=False),
    "gpt2-scaled": gpt2(gguf=False, scale_attn_by_inverse_layer_idx=True),
    "gpt2-unscaled": gpt2(gguf=False, scale_attn_weights=False),
    "gpt2-model": gpt2("Model"),
    "gpt2-classify": gpt2("ForSequenceClassification", num_labels=3),
    "gpt2-tag": gpt2("ForTokenClassification", num_labels=3),
}  # fmt: skip
