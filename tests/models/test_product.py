"""The attention product: every way of computing it gives what the formula says."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from danlu.models import product
from danlu.models.product import Rule, mix, visible


def by_hand(q: Tensor, k: Tensor, v: Tensor, rule: Rule, seen: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ) v in fp64, one table for everything. seen: (B, T, S)."""
    q, k, v = (x.double() for x in (q, k, v))
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    scores = torch.einsum("bthe,bshe->bhts", q, k) * rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    if bias is not None:
        scores = scores + bias
    weights = scores.masked_fill(~seen.unsqueeze(1), float("-inf")).softmax(dim=-1)
    return torch.einsum("bhts,bshe->bthe", weights, v)


def table(rule: Rule, length: int, span: int, lengths: list[int] | None = None) -> Tensor:
    """Who sees whom, place by place, as the rule's words say: (B, T, S)."""
    rows = lengths or [span]
    seen = torch.zeros(len(rows), length, span, dtype=torch.bool)
    for row, t, s in itertools.product(range(len(rows)), range(length), range(span)):
        place = t + (span - length if rule.causal else 0)
        is_near = rule.window is None or abs(place - s) < rule.window
        is_past = not rule.causal or s <= place
        seen[row, t, s] = is_past and is_near and (s < rows[row] or s == place)
    return seen


def some(length: int, span: int, dtype: torch.dtype = torch.float32, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length + span)
    shapes = ((rows, length, 4, 8), (rows, span, 2, 8), (rows, span, 2, 8))
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


RULES = {
    "causal": Rule(scale=0.35),
    "bidirectional": Rule(causal=False, scale=0.35),
    "window": Rule(window=5, scale=0.35),
    "bidirectional window": Rule(causal=False, window=4, scale=0.35),
    "softcap": Rule(softcap=1.5, scale=0.35),
}


@pytest.fixture(params=[True, False], ids=["blocks of 8", "whole"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(product, "_BLOCKS", (8, 8))


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("length", [19, 45])  # bf16 tables of more than 32 keys are widened for the kernel
def test_it_is_the_formula(rule: Rule, dtype: torch.dtype, length: int) -> None:
    q, k, v = some(length, length, dtype)
    mixed = mix(q, k, v, rule, lambda a, b: visible(rule, a, b, None, q.device))
    expected = by_hand(q, k, v, rule, table(rule, length, length))
    torch.testing.assert_close(mixed.double(), expected, atol=2e-6 if dtype == torch.float32 else 3e-2, rtol=1e-2)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_last_query_stands_at_the_last_key(dtype: torch.dtype) -> None:
    rule = RULES["causal"]
    q, k, v = some(6, 21, dtype)
    mixed = mix(q, k, v, rule, lambda a, b: visible(rule, a, b, None, q.device))
    expected = by_hand(q, k, v, rule, table(rule, 6, 21))
    torch.testing.assert_close(mixed.double(), expected, atol=2e-6 if dtype == torch.float32 else 3e-2, rtol=1e-2)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["bidirectional", "bidirectional window"])
@pytest.mark.parametrize("longest", [19, 45])
def test_padding_is_not_seen_by_real_tokens(name: str, dtype: torch.dtype, longest: int) -> None:
    rule, lengths = RULES[name], [longest, 7]
    q, k, v = some(longest, longest, dtype)
    mixed = mix(q, k, v, rule, lambda a, b: visible(rule, a, b, torch.tensor(lengths), q.device))
    assert torch.isfinite(mixed).all()  # also where queries are padding
    expected = by_hand(q, k, v, rule, table(rule, longest, longest, lengths))
    for row, length in enumerate(lengths):
        tolerance = 2e-6 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(
            mixed[row, :length].double(), expected[row, :length], atol=tolerance, rtol=1e-2
        )  # fmt: skip


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [19, 45])
def test_a_bias_is_added_to_scores(causal: bool, dtype: torch.dtype, length: int) -> None:
    rule = Rule(causal=causal, scale=1.0)
    q, k, v = some(length, length, dtype)
    bias = torch.randn(4, length, length, generator=torch.Generator().manual_seed(3))
    mixed = mix(q, k, v, rule, lambda a, b: visible(rule, a, b, None, q.device), bias)
    expected = by_hand(q, k, v, rule, table(rule, length, length), bias)
    torch.testing.assert_close(mixed.double(), expected, atol=2e-6 if dtype == torch.float32 else 6e-2, rtol=2e-2)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_gradients_are_those_of_the_formula(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "_BLOCKS", (8, 8))
    tensors = [x.requires_grad_() for x in some(19, 19)]
    q, k, v = tensors
    wanted = torch.randn(2, 19, 4, 8, generator=torch.Generator().manual_seed(9))
    mix(q, k, v, rule, lambda a, b: visible(rule, a, b, None, q.device)).backward(wanted)
    found = [x.grad for x in tensors]
    doubles = [x.detach().double().requires_grad_() for x in tensors]
    by_hand(*doubles, rule, table(rule, 19, 19)).backward(wanted.double())
    for ours, expected in zip(found, doubles, strict=True):
        assert ours is not None
        assert expected.grad is not None
        torch.testing.assert_close(ours.double(), expected.grad, atol=1e-5, rtol=1e-4)


def test_dropped_weights_are_dropped_in_the_asked_share() -> None:
    rule = Rule(causal=False, scale=1.0, dropout=0.25)
    q, k = torch.zeros(1, 64, 1, 8), torch.zeros(1, 64, 1, 8)  # every weight is 1 / 64
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        mixed = mix(q.to(dtype), k.to(dtype), torch.ones(1, 64, 1, 8, dtype=dtype), rule, lambda a, b: None)
        kept = mixed[0, :, 0, 0].float() * 64 * 0.75  # how many of 64 each query kept
        assert 0.70 < float(kept.mean()) / 64 < 0.80
        assert len(kept.round().unique()) > 3


def test_nothing_is_hidden_where_all_is_seen() -> None:
    assert visible(Rule(causal=False), range(5), range(5), None, torch.device("cpu")) is None
    assert visible(Rule(), range(4, 5), range(5), None, torch.device("cpu")) is None
    assert visible(Rule(window=9), range(4, 5), range(5), None, torch.device("cpu")) is None
