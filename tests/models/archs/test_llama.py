from typing import Any

import pytest
import torch

from danlu.core.errors import ModelError
from danlu.models.archs.llama import plugin as llama
from danlu.models.attention import AttentionConfig
from danlu.models.heads.lm import LMHeadConfig
from danlu.models.network import ModelConfig

WHOLE = {
    "model_type": "llama",
    "vocab_size": 420,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 128,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
    "tokenizer.ggml.tokens": ["a"] * 420,
}


def attention_of(config: ModelConfig) -> AttentionConfig:
    mixer = config.stack.layers[0].mixer
    assert isinstance(mixer, AttentionConfig)
    return mixer


def base_of(config: ModelConfig) -> float:
    rotary = attention_of(config).rotary
    assert rotary is not None
    return rotary.base


def test_what_a_config_leaves_out_is_what_the_family_assumes() -> None:
    config = llama.read_config(WHOLE)
    attention = attention_of(config)
    assert (attention.num_kv_heads, attention.head_width, base_of(config)) == (4, 8, 10_000.0)
    assert isinstance(config.head, LMHeadConfig)
    assert not config.head.tied


def test_the_rotary_base_is_read_from_both_places_where_it_may_stand() -> None:
    assert base_of(llama.read_config({**WHOLE, "rope_theta": 5e5})) == 5e5
    inside = {"rope_parameters": {"rope_type": "default", "rope_theta": 2e5}}
    assert base_of(llama.read_config({**WHOLE, **inside})) == 2e5


def test_layers_that_are_alike_are_one_object() -> None:
    first, second = llama.read_config(WHOLE).stack.layers
    assert first is second


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "softsign"}, "config.json: hidden_act is 'softsign'."),
        ({"pretraining_tp": 2}, "config.json: pretraining_tp is 2. Only 1 is supported so far"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "config.json: rope_parameters lacks 'factor'"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "config.json: rope_type is 'spiral'."),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "surprise": 1}},
            "config.json: rope_parameters has an unknown key 'surprise'",
        ),
        ({"quantization_config": {"bits": 4}}, "config.json: quantization_config is {'bits': 4}."),
        ({"hiden_act": "silu"}, "config.json has an unknown key 'hiden_act'. Did you mean 'hidden_act'?"),
        ({"rms_norm_epsilon": 1e-6}, "unknown key 'rms_norm_epsilon'. Did you mean 'rms_norm_eps'?"),
        ({"num_key_value_heads": 3}, "4 query heads cannot share 3 key/value heads"),
        ({"head_dim": 7}, "Rotary width 7 is odd or too small"),
        ({"hidden_size": 0, "head_dim": 8}, "width is 0. It must be positive"),
        ({"vocab_size": "many"}, "config.json: vocab_size is 'many'. It must be a whole number"),
        ({"attention_bias": 1}, "config.json: attention_bias is 1. It must be true or false"),
        ({"architectures": ["LlamaForQuestionAnswering"]}, "architectures is ['LlamaForQuestionAnswering']"),
        ({"architectures": ["LlamaForMaskedLM"]}, "a decoder '…ForMaskedLM' is not supported"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError) as error:
        llama.read_config({**WHOLE, **changes})
    assert message in str(error.value)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers"])
def test_a_missing_number_is_named(key: str) -> None:
    with pytest.raises(ModelError, match=f"config.json lacks '{key}'. Copy the model's whole config.json"):
        llama.read_config({name: value for name, value in WHOLE.items() if name != key})


def test_an_untied_head_has_weights_of_its_own() -> None:
    tied, untied = (
        set(llama.weights(llama.read_config({**WHOLE, "tie_word_embeddings": is_tied}))) for is_tied in (True, False)
    )
    assert untied - tied == {"head.linear.weight"}


# ---- GGUF ------------------------------------------------------------------------------------------------------------


def test_numbers_of_a_gguf_file_are_those_of_its_config() -> None:
    theirs = llama.config_from_gguf(METADATA, {})
    assert llama.read_config({**theirs, "tie_word_embeddings": False}) == llama.read_config(
        {**WHOLE, "vocab_size": 420}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.attention.head_count": None}, "The GGUF metadata lacks 'llama.attention.head_count'"),
        ({"tokenizer.ggml.tokens": None}, "The GGUF metadata lacks 'tokenizer.ggml.tokens'"),
        (
            {"llama.attention.sliding_window": 8},
            "has an unknown key 'llama.attention.sliding_window'",
        ),
        ({"llama.attention.value_length": 16}, "values of width 16 and keys of width 8"),
        ({"llama.attention.head_count": [4, 2]}, "The GGUF file has layers with [4, 2] heads"),
        ({"llama.rope.scaling.type": "spiral"}, "The GGUF file stretches rotary positions by 'spiral'"),
    ],
)
def test_what_a_gguf_file_lacks_or_says_beyond_is_named(changes: dict[str, Any], message: str) -> None:
    metadata = {key: value for key, value in {**METADATA, **changes}.items() if value is not None}
    with pytest.raises(ModelError) as error:
        llama.config_from_gguf(metadata, {})
    assert message in str(error.value)


def test_a_gguf_file_with_factors_for_long_rows_alone_is_refused() -> None:
    with pytest.raises(ModelError, match=r"The GGUF file lacks rope_factors_short\.weight"):
        llama.config_from_gguf(METADATA, {"rope_factors_long.weight": torch.ones(4)})


def test_a_projection_of_another_shape_is_left_for_the_loader_to_name() -> None:
    weight = torch.zeros(7, 3)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert llama.weight_from_gguf(name, weight, llama.read_config(WHOLE)) is weight
