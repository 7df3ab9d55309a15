"""What the configs of families with experts become, and what they must not say."""

from __future__ import annotations

from typing import Any

import pytest

from danlu.core import plugins
from danlu.core.errors import ModelError
from danlu.models.attention import AttentionConfig
from danlu.models.experts import ExpertsConfig
from danlu.models.feedforward import FeedForwardConfig
from danlu.models.network import ModelConfig
from tests.models.cases.experts import CASES


def _config(case: str, **changes: Any) -> ModelConfig:
    theirs = CASES[case].config(**CASES[case].numbers).to_dict()
    architecture = plugins.load("models.archs", theirs["model_type"])
    return architecture.read_config({**theirs, "architectures": [CASES[case].peer.__name__], **changes})


def _kinds(config: ModelConfig) -> list[str]:
    return ["experts" if isinstance(one.feedforward, ExpertsConfig) else "plain" for one in config.stack.layers]


def test_mixtral_weighs_its_experts_to_one_and_slides_its_window() -> None:
    layer = _config("mixtral-window").stack.layers[0]
    assert isinstance(layer.feedforward, ExpertsConfig)
    assert isinstance(layer.mixer, AttentionConfig)
    assert (layer.feedforward.num_experts, layer.feedforward.top_k, layer.feedforward.normalise) == (8, 3, True)
    assert layer.mixer.window == 6


def test_qwen3_moe_has_experts_in_every_so_many_layers_but_for_those_it_lists() -> None:
    config = _config("qwen3-moe-some-plain")
    assert _kinds(config) == ["plain", "experts", "plain", "plain"]
    plain = config.stack.layers[0].feedforward
    assert isinstance(plain, FeedForwardConfig)
    assert plain.width == 24


@pytest.mark.parametrize("case", ["qwen3-moe", "olmoe"])
def test_the_number_of_experts_is_read_under_both_its_names(case: str) -> None:
    theirs = {"num_experts": None, "num_local_experts": None}
    for name in theirs:
        layer = _config(case, **{**theirs, name: 16}).stack.layers[0].feedforward
        assert isinstance(layer, ExpertsConfig)
        assert layer.num_experts == 16


def test_switch_has_experts_where_the_reference_puts_them() -> None:
    config = _config("switch")
    assert config.encoder is not None
    assert _kinds(config) == ["plain", "experts", "plain"]
    inner = config.encoder.stack.layers[1].feedforward
    assert isinstance(inner, ExpertsConfig)
    assert (inner.top_k, inner.capacity, inner.router_fp32, inner.jitter, inner.gated) == (1, 64, True, 0.01, False)


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("mixtral", {"router_jitter_noise": 0.1}, "config.json: router_jitter_noise is 0.1. Only 0.0 is supported"),
        ("mixtral", {"num_experts_per_tok": 5}, "each token goes through 5 of 4 experts"),
        ("olmoe", {"clip_qkv": 8.0}, "config.json: clip_qkv is 8.0. Only None is supported so far."),
        ("qwen3-moe", {"use_sliding_window": True}, "config.json: use_sliding_window is True. Only False"),
        ("qwen3-moe", {"num_experts": None, "num_local_experts": None}, "config.json lacks 'num_experts'"),
        ("switch", {"router_dtype": "float16"}, "config.json: router_dtype is 'float16'."),
        ("switch", {"router_ignore_padding_tokens": True}, "router_ignore_padding_tokens is True. Only False"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(case: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as error:
        _config(case, **changes)
    assert message in str(error.value)
