"""Configs as they lie beside the public checkpoints, older than those transformers writes now, and what they mean."""

from __future__ import annotations

from typing import Any

import pytest

from danlu.core import plugins
from danlu.core.errors import ModelError
from danlu.models.attention import AttentionConfig
from danlu.models.network import ModelConfig

LLAMA_3_2 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.45.0",
    "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
GPT2 = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
    "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
    "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "vocab_size": 50257,
}  # fmt: skip
MISTRAL = {
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
    "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
QWEN2_5 = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
    "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1", "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
    "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 107],
    "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 3584, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 16,
    "num_hidden_layers": 42, "num_key_value_heads": 8, "pad_token_id": 0, "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_size": 4096,
    "torch_dtype": "bfloat16", "transformers_version": "4.42.0.dev0", "use_cache": True, "vocab_size": 256000,
}  # fmt: skip
GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
    "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
    "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768,
    "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
    "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "use_cache": True, "vocab_size": 262144,
}  # fmt: skip
PHI3 = {
    "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
    "bos_token_id": 1, "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072,
    "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "model_type": "phi3",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": [1.0 + i for i in range(48)], "short_factor": [1.0] * 48, "type": "longrope"},
    "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.40.2", "use_cache": True, "vocab_size": 32064,
}  # fmt: skip
OLMO2 = {
    "architectures": ["Olmo2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "eos_token_id": 100257,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008,
    "max_position_embeddings": 4096, "model_type": "olmo2", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 32, "pad_token_id": 100277, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 500000, "tie_word_embeddings": False, "torch_dtype": "float32", "transformers_version": "4.47.0",
    "use_cache": False, "vocab_size": 100352,
}  # fmt: skip


def read(theirs: dict[str, Any], **changes: Any) -> ModelConfig:
    return plugins.load("models.archs", theirs["model_type"]).read_config({**theirs, **changes})


def mixers(config: ModelConfig) -> list[AttentionConfig]:
    return [layer.mixer for layer in config.stack.layers if isinstance(layer.mixer, AttentionConfig)]


@pytest.mark.parametrize(
    ("theirs", "width", "layers", "head_width", "kv_heads", "tied"),
    [
        (LLAMA_3_2, 2048, 16, 64, 8, True),
        (GPT2, 768, 12, 64, 12, True),
        (MISTRAL, 4096, 32, 128, 8, False),
        (QWEN2_5, 896, 24, 64, 2, True),
        (QWEN3, 1024, 28, 128, 8, True),
        (GEMMA2, 3584, 42, 256, 8, True),
        (GEMMA3, 1152, 26, 256, 1, True),
        (PHI3, 3072, 32, 96, 32, False),
        (OLMO2, 4096, 32, 128, 32, False),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_the_public_config_is_read(
    theirs: dict[str, Any], width: int, layers: int, head_width: int, kv_heads: int, tied: bool
) -> None:
    config = read(theirs)
    first = mixers(config)[0]
    assert (config.width, config.num_layers, first.head_width, first.num_kv_heads) == (
        width, layers, head_width, kv_heads,
    )  # fmt: skip
    assert config.is_tied == tied


def test_llama_3_keeps_fast_channels_and_stretches_slow_ones() -> None:
    rotary = mixers(read(LLAMA_3_2))[0].rotary
    assert rotary is not None
    assert (rotary.scaling.kind, rotary.scaling.factor, rotary.scaling.original_length) == ("llama3", 32.0, 8192)


def test_a_mistral_config_that_is_silent_has_a_window_and_one_that_says_null_has_none() -> None:
    silent = {key: value for key, value in MISTRAL.items() if key != "sliding_window"}
    assert mixers(read(silent))[0].window == 4096
    assert mixers(read(MISTRAL, sliding_window=None))[0].window is None


def test_a_qwen_window_is_off_unless_it_is_switched_on_and_begins_at_a_layer() -> None:
    assert {mixer.window for mixer in mixers(read(QWEN2_5))} == {None}
    windows = [mixer.window for mixer in mixers(read(QWEN2_5, use_sliding_window=True))]
    assert windows == [None] * 21 + [32768] * 3


def test_a_qwen3_config_without_a_head_width_means_128() -> None:
    silent = {key: value for key, value in QWEN3.items() if key != "head_dim"}
    assert mixers(read(silent))[0].head_width == 128
    assert mixers(read(QWEN3))[0].qk_norm == "head"


def test_gemma_2_has_a_window_in_every_other_layer_and_caps() -> None:
    config = read(GEMMA2)
    assert [mixer.window for mixer in mixers(config)[:4]] == [4096, None, 4096, None]
    assert {(mixer.softcap, mixer.scale) for mixer in mixers(config)} == {(50.0, 0.0625)}
    assert config.head.softcap == 30.0  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    assert config.tower.input.scale == pytest.approx(3584**0.5)  # pyright: ignore[reportAttributeAccessIssue]


def test_gemma_3_looks_far_in_every_sixth_layer_with_another_base() -> None:
    seen = [(mixer.window, mixer.rotary and mixer.rotary.base) for mixer in mixers(read(GEMMA3))]
    assert seen[:6] == [(512, 10_000.0)] * 5 + [(None, 1_000_000.0)]
    stretched = mixers(read(GEMMA3, rope_scaling={"factor": 8.0, "rope_type": "linear"}))
    assert [mixer.rotary and mixer.rotary.scaling.factor for mixer in stretched[4:6]] == [1.0, 8.0]


def test_gemma_3_needs_positions_of_both_kinds_of_layers() -> None:
    with pytest.raises(ModelError, match="rope_parameters lacks 'sliding_attention'"):
        read(GEMMA3, rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1e6}})


def test_phi_3_stretches_by_its_two_lists() -> None:
    rotary = mixers(read(PHI3))[0].rotary
    assert rotary is not None
    assert (rotary.scaling.kind, rotary.scaling.original_length) == ("longrope", 4096)
    assert rotary.scaling.attention_factor == pytest.approx(1.19, abs=0.01)
    assert rotary.by_length


def test_olmo_2_norms_what_a_branch_gives() -> None:
    config = read(OLMO2)
    assert config.stack.norm_at == ("output",)
    assert mixers(config)[0].qk_norm == "all"


@pytest.mark.parametrize(
    ("theirs", "changes", "message"),
    [
        (GPT2, {"add_cross_attention": True}, "add_cross_attention is True. Only False is supported"),
        (GEMMA2, {"use_bidirectional_attention": True}, "use_bidirectional_attention is True. Only False"),
        (GEMMA2, {"sliding_window_size": 8}, "sliding_window_size is 8. Only 4096 is supported"),
        (GEMMA2, {"layer_types": ["full_attention"]}, "layer_types is ['full_attention']. It must name 42 layers"),
        (QWEN2_5, {"layer_types": ["chunked_attention"] * 24}, "It must name 24 layers: sliding_attention or full"),
        (PHI3, {"attention_bias": True}, "attention_bias is True. Only False is supported"),
        (OLMO2, {"clip_qkv": 8.0}, "unknown key 'clip_qkv'"),
    ],
)
def test_what_is_not_honoured_is_refused(theirs: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as error:
        read(theirs, **changes)
    assert message in str(error.value)
