"""The attention layer: what it does to queries and keys before rows meet, and to what comes out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from danlu.core.errors import ModelError
from danlu.models.attend import Memory, PackedAttend
from danlu.models.attention import Attention, AttentionConfig, CrossAttention, Places
from danlu.models.norms import NormConfig
from danlu.models.product import Rule

CONFIG = AttentionConfig(num_heads=4, num_kv_heads=2, head_width=8, bias=True, out_bias=True)
WIDTH, LENGTH = 12, 5


class Seen:
    """An ``Attend`` that keeps what it was given and answers with the queries."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule, bias: Tensor | None) -> Tensor:
        self.q, self.k, self.v, self.rule = q, k, v, rule
        return q


def layer_of(config: AttentionConfig, norm: NormConfig | None = None) -> Attention:
    torch.manual_seed(0)
    layer = Attention(config, WIDTH, norm or NormConfig(), layer=0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer.eval()


def run(layer: Attention) -> tuple[Seen, Tensor, Tensor]:
    """What the attend saw, what went in, what came out."""
    seen, x = Seen(), torch.randn(LENGTH, WIDTH)
    out = layer(x, Places(torch.arange(LENGTH), {}), seen)  # pyright: ignore[reportArgumentType]
    return seen, x, out


def test_one_linear_makes_queries_keys_and_values() -> None:
    layer = layer_of(CONFIG)
    seen, x, out = run(layer)
    heads = x @ layer.qkv.weight.T + layer.qkv.bias
    q, k, v = heads.split([32, 16, 16], dim=1)
    for got, wanted in ((seen.q, q), (seen.k, k), (seen.v, v)):
        torch.testing.assert_close(got.flatten(1), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out, q @ layer.out.weight.T + layer.out.bias, atol=1e-4, rtol=1e-5)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(dim=-1, keepdim=True) + 1e-5).rsqrt() * weight


def test_queries_and_keys_are_normed_head_by_head_or_all_at_once() -> None:
    for how, shape in (("head", (LENGTH, -1, 8)), ("all", (LENGTH, 1, -1))):
        layer = layer_of(replace(CONFIG, qk_norm=how))  # pyright: ignore[reportArgumentType]
        seen, x, _ = run(layer)
        heads = (x @ layer.qkv.weight.T + layer.qkv.bias).split([32, 16, 16], dim=1)
        for got, made, norm in ((seen.q, heads[0], layer.q_norm), (seen.k, heads[1], layer.k_norm)):
            wanted = rms(made.view(shape), norm.weight).flatten(1)  # pyright: ignore[reportArgumentType]
            torch.testing.assert_close(got.flatten(1), wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(seen.v.flatten(1), heads[2], atol=1e-5, rtol=1e-5)


def test_a_gate_made_with_the_queries_scales_what_comes_out() -> None:
    layer = layer_of(replace(CONFIG, gated=True))
    seen, x, out = run(layer)
    made = (x @ layer.qkv.weight.T + layer.qkv.bias)[:, : 2 * 32].view(LENGTH, 4, 16)
    q, gate = made.chunk(2, dim=-1)
    torch.testing.assert_close(seen.q, q, atol=1e-5, rtol=1e-5)
    wanted = (q * gate.sigmoid()).flatten(1) @ layer.out.weight.T + layer.out.bias
    torch.testing.assert_close(out, wanted, atol=1e-4, rtol=1e-4)


def test_weights_are_dropped_in_training_only() -> None:
    layer = layer_of(replace(CONFIG, dropout=0.5))
    assert run(layer)[0].rule.dropout == 0.0
    assert run(layer.train())[0].rule.dropout == 0.5


def test_scores_are_scaled_by_the_head_unless_told_otherwise() -> None:
    assert CONFIG.rule.scale == pytest.approx(8**-0.5)
    assert replace(CONFIG, scale=0.25).rule.scale == 0.25


def test_cross_attention_makes_keys_and_values_of_the_memory() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(replace(CONFIG, causal=False, num_kv_heads=4), WIDTH, layer=0).eval()
    x, memory = torch.randn(3, WIDTH), torch.randn(4, WIDTH)
    attend = PackedAttend((3,), memory=Memory(memory, (4,)))
    out = layer(x, Places(torch.arange(3), {}), attend)
    k, v = (memory @ layer.kv.weight.T + layer.kv.bias).chunk(2, dim=1)
    q = layer.q(x)
    q, k, v = (part.view(-1, 4, 8).transpose(0, 1) for part in (q, k, v))
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
    torch.testing.assert_close(out, layer.out(mixed), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "Model config: num_heads is 0. It must be positive"),
        ({"head_width": -1}, "Model config: head_width is -1. It must be positive"),
        ({"num_kv_heads": 3}, "4 query heads cannot share 3 key/value heads. The first must be a multiple"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as error:
        replace(CONFIG, **changes)
    assert message in str(error.value)
