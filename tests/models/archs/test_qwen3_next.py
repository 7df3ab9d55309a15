from typing import Any

import pytest
import torch

from danlu.core.errors import ModelError
from danlu.models.archs.qwen3_next import plugin as qwen3_next
from danlu.models.attention import AttentionConfig
from danlu.models.delta import DeltaConfig
from danlu.models.experts import ExpertsConfig
from danlu.models.feedforward import FeedForwardConfig
from danlu.models.positions import RotaryConfig

WHOLE: dict[str, Any] = {
    "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "vocab_size": 151936, "hidden_size": 2048,
    "intermediate_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 2,
    "head_dim": 256, "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu",
    "max_position_embeddings": 262144, "rms_norm_eps": 1e-6, "rope_theta": 10_000_000, "rope_scaling": None,
    "partial_rotary_factor": 0.25, "full_attention_interval": 4, "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32, "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512, "num_experts": 512, "num_experts_per_tok": 10, "norm_topk_prob": True,
    "output_router_logits": False, "router_aux_loss_coef": 0.001, "tie_word_embeddings": False,
    "use_sliding_window": False,
}  # fmt: skip
"""The shape of the published 80B model."""


def test_the_shape_of_a_published_model() -> None:
    config = qwen3_next.read_config(WHOLE)
    mixers = [layer.mixer for layer in config.stack.layers]
    delta = DeltaConfig(num_key_heads=16, num_value_heads=32, key_width=128, value_width=128)
    assert [isinstance(mixer, AttentionConfig) for mixer in mixers] == [False, False, False, True] * 12
    assert mixers[0] == delta
    attention = mixers[3]
    assert isinstance(attention, AttentionConfig)
    assert attention.rotary == RotaryConfig(width=64, base=1e7)
    assert (attention.gated, attention.qk_norm, config.stack.norm.unit_offset) == (True, "head", True)
    assert config.stack.layers[0].feedforward == ExpertsConfig(
        num_experts=512, top_k=10, width=512, normalise=True, shared_width=512, shared_gate=True
    )
    with torch.device("meta"):
        network = config.make()
    assert sum(weight.numel() for weight in network.parameters()) == 79_674_391_296  # as transformers counts it


def test_a_quarter_of_each_head_turns_where_the_config_does_not_say() -> None:
    theirs = {key: value for key, value in WHOLE.items() if key != "partial_rotary_factor"}
    assert qwen3_next.read_config(theirs) == qwen3_next.read_config(WHOLE)
    inside = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.5}}
    attention = qwen3_next.read_config({**theirs, **inside}).stack.layers[3].mixer
    assert isinstance(attention, AttentionConfig)
    assert attention.rotary == RotaryConfig(width=128, base=1e7)


def test_layers_are_named_or_follow_the_interval() -> None:
    named = {**WHOLE, "num_hidden_layers": 3, "layer_types": ["full_attention", "linear_attention", "full_attention"]}
    mixers = [layer.mixer for layer in qwen3_next.read_config(named).stack.layers]
    assert [isinstance(mixer, DeltaConfig) for mixer in mixers] == [False, True, False]
    every = {**WHOLE, "num_hidden_layers": 4, "full_attention_interval": 2, "mlp_only_layers": [1]}
    layers = qwen3_next.read_config(every).stack.layers
    assert [isinstance(layer.mixer, DeltaConfig) for layer in layers] == [True, False, True, False]
    assert [isinstance(layer.feedforward, FeedForwardConfig) for layer in layers] == [False, True, False, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["linear_attention"]}, "It must name 48 layers, each one of linear_attention, full_attention"),
        ({"layer_types": ["mamba"] * 48}, "It must name 48 layers, each one of linear_attention, full_attention"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'. Only 'silu' is supported so far."),
        ({"use_sliding_window": True}, "use_sliding_window is True. Only False"),
        ({"linear_num_value_heads": 24}, "24 value heads cannot share 16 key heads"),
    ],
)
def test_a_config_that_cannot_be_honoured_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        qwen3_next.read_config({**WHOLE, **changes})
