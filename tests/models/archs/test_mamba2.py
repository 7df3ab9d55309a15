import math
from pathlib import Path
from typing import Any

import pytest
import torch

from danlu.core.errors import ModelError
from danlu.models.archs.mamba2 import plugin as mamba2
from danlu.models.block import StackConfig
from danlu.models.load import load_model
from danlu.models.mamba import Mamba2Config
from tests.models.cases.recurrent import mamba2 as case

WHOLE: dict[str, Any] = {
    "architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "vocab_size": 50288, "hidden_size": 768,
    "num_hidden_layers": 24, "num_heads": 24, "head_dim": 64, "state_size": 128, "n_groups": 1, "expand": 2,
    "conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "hidden_act": "silu", "layer_norm_epsilon": 1e-5,
    "residual_in_fp32": True, "rms_norm": True, "norm_before_gate": False, "rescale_prenorm_residual": False,
    "chunk_size": 256, "time_step_rank": 48, "time_step_min": 0.001, "time_step_max": 0.1, "time_step_floor": 1e-4,
    "time_step_limit": [0.0, {"__float__": "Infinity"}], "tie_word_embeddings": True,
}  # fmt: skip
"""The shape of the published 130M model."""


def mixer(stack: StackConfig) -> Mamba2Config:
    config = stack.layers[0].mixer
    assert isinstance(config, Mamba2Config)
    return config


def test_the_shape_of_a_published_model() -> None:
    config = mamba2.read_config(WHOLE)
    assert mixer(config.stack) == Mamba2Config(num_heads=24, head_width=64, state_width=128)
    with torch.device("meta"):
        network = config.make()
    assert sum(weight.numel() for weight in network.parameters()) == 128_989_632  # as transformers counts it
    assert (config.num_layers, config.is_tied) == (24, True)
    assert config.stack.is_recurrent
    assert config.stack.is_causal


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ([0.0, {"__float__": "Infinity"}], (0.0, math.inf)),
        ([0.0, math.inf], (0.0, math.inf)),
        ([0.001, 0.1], (0.001, 0.1)),
        (None, (0.0, math.inf)),
    ],
)
def test_limits_of_time_steps_are_read_in_every_spelling(limit: Any, expected: tuple[float, float]) -> None:
    assert mixer(mamba2.read_config({**WHOLE, "time_step_limit": limit}).stack).step_limit == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_step_limit": [0.0]}, r"time_step_limit is \[0.0\]. It must be two numbers."),
        ({"time_step_limit": [0.0, "much"]}, r"time_step_limit is \[0.0, 'much'\]. It must be two numbers."),
        ({"time_step_limit": 0.5}, r"time_step_limit is 0.5. It must be two numbers."),
        ({"expand": 3}, "24 heads of 64 are not expand × hidden_size = 2304"),
        ({"intermediate_size": 1000}, "24 heads of 64 are not expand × hidden_size = 1536"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'. Only 'silu' is supported so far."),
        ({"n_groups": 5}, "24 heads cannot be split into 5 groups"),
        ({"num_heads": None}, "lacks 'num_heads'"),
    ],
)
def test_a_config_that_cannot_be_honoured_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        mamba2.read_config({**WHOLE, **changes})


@pytest.mark.usefixtures("one_thread")
def test_biases_of_the_linears_equal_transformers(tmp_path: Path) -> None:
    """Rows alone: transformers lets the bias of padded tokens into the convolution."""
    biased = case(use_bias=True)
    peer = biased.make()
    peer.save_pretrained(tmp_path)
    rows = [biased.compare.rows(biased)[2]]
    ours = biased.compare.ours(load_model(tmp_path, precision="fp32"), rows)
    torch.testing.assert_close(ours, biased.compare.theirs(biased, peer, rows, "right"), atol=1e-5, rtol=1e-5)
