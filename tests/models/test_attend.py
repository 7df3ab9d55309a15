"""Rows that share a pass behave like each row alone, whether they are read at once or written token by token."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from danlu.models.attend import DecodeAttend, Layout, Memory, PackedAttend, PrefillAttend, row_positions, shared_prefix
from danlu.models.attention import AttentionConfig
from danlu.models.block import LayerConfig, StackConfig
from danlu.models.cache import KVCache
from danlu.models.norms import NormConfig
from danlu.models.product import Rule

RULES = {
    "causal": Rule(scale=0.4),
    "window": Rule(window=4, scale=0.4),
    "softcap": Rule(softcap=1.5, scale=0.4),
    "windowed softcap": Rule(window=3, softcap=2.0, scale=0.4),
    "both ways": Rule(causal=False, scale=0.4),
    "window both ways": Rule(causal=False, window=3, scale=0.4),
}
CAUSAL = {name: rule for name, rule in RULES.items() if rule.causal}
HEADS, KV_HEADS, WIDTH = 4, 2, 8
Row = tuple[Tensor, Tensor, Tensor]


def make_rows(*lengths: int, seed: int = 0) -> list[Row]:
    """Queries, keys and values of rows."""
    generator = torch.Generator().manual_seed(seed)

    def some(length: int, heads: int) -> Tensor:
        return torch.randn(length, heads, WIDTH, generator=generator)

    return [(some(length, HEADS), some(length, KV_HEADS), some(length, KV_HEADS)) for length in lengths]


def end_to_end(rows: list[Row]) -> Row:
    q, k, v = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return q, k, v


def places(row: Row, start: int, stop: int) -> Row:
    q, k, v = (x[start:stop] for x in row)
    return q, k, v


def alone(row: Row, rule: Rule) -> Tensor:
    """One row, place by place, as the rule's words say."""
    q, k, v = row
    mixed = torch.zeros_like(q)
    for place, head in itertools.product(range(len(q)), range(HEADS)):
        kv = head // (HEADS // KV_HEADS)
        first = 0 if rule.window is None else max(0, place - rule.window + 1)
        ahead = len(q) if rule.window is None else place + rule.window
        seen = slice(first, place + 1 if rule.causal else ahead)
        scores = k[seen, kv] @ q[place, head] * rule.scale
        if rule.softcap is not None:
            scores = rule.softcap * torch.tanh(scores / rule.softcap)
        mixed[place, head] = scores.softmax(dim=0) @ v[seen, kv]
    return mixed


def cache_of(num_rows: int, num_tokens: int) -> KVCache:
    attention = AttentionConfig(num_heads=HEADS, num_kv_heads=KV_HEADS, head_width=WIDTH)
    stack = StackConfig(
        width=HEADS * WIDTH,
        layers=(LayerConfig(mixer=attention, cross=attention),),
        norm=NormConfig(),
        context_length=num_tokens,
    )
    return KVCache(stack, num_rows, num_tokens, torch.float32, torch.device("cpu"), memory_tokens=6)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("lengths", [(5,), (1, 9, 4), (6, 6)], ids=["one", "ragged", "even"])
def test_packed_rows_are_each_row_alone(rule: Rule, lengths: tuple[int, ...]) -> None:
    rows = make_rows(*lengths)
    mixed = PackedAttend(lengths)(0, *end_to_end(rows), rule, None)
    torch.testing.assert_close(mixed, torch.cat([alone(row, rule) for row in rows]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rule", CAUSAL.values(), ids=CAUSAL)
def test_tokens_that_rows_share_are_computed_once_and_change_nothing(rule: Rule) -> None:
    (first,), rest = make_rows(6, seed=1), make_rows(3, 7, 1)
    mixed = PackedAttend((3, 7, 1), shared=6)(0, *end_to_end([first, *rest]), rule, None)
    wanted = [alone(first, rule), *(alone(end_to_end([first, row]), rule)[6:] for row in rest)]
    torch.testing.assert_close(mixed, torch.cat(wanted), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("rule", CAUSAL.values(), ids=CAUSAL)
def test_rows_written_a_few_tokens_at_a_time_are_rows_read_at_once(rule: Rule, new: int) -> None:
    lengths, cache = (2, 8, 5), cache_of(3, 16)
    rows = make_rows(*(length + 2 * new for length in lengths))
    heads = [places(row, 0, length) for row, length in zip(rows, lengths, strict=True)]
    PrefillAttend(cache, 0, lengths)(0, *end_to_end(heads), rule, None)
    for step in range(2):
        filled = torch.tensor(lengths) + step * new
        some = [places(row, n, n + new) for row, n in zip(rows, filled.tolist(), strict=True)]
        mixed = DecodeAttend(cache, filled, new)(0, *end_to_end(some), rule, None)
        wanted = [alone(row, rule)[n : n + new] for row, n in zip(rows, filled.tolist(), strict=True)]
        torch.testing.assert_close(mixed, torch.cat(wanted), atol=1e-5, rtol=1e-5)


def test_a_bias_by_distance_is_the_same_at_once_and_token_by_token() -> None:
    rule, cache, (row,) = RULES["causal"], cache_of(1, 8), make_rows(6)
    packed = PackedAttend((6,))
    slope = torch.tensor([0.1, 0.2, 0.3, 0.4]).view(HEADS, 1, 1)
    whole = packed(0, *row, rule, slope * packed.distances())
    PrefillAttend(cache, 0, (4,))(0, *places(row, 0, 4), rule, slope * packed.distances()[:4, :4])
    for place in (4, 5):
        decode = DecodeAttend(cache, torch.tensor([place]))
        bias = slope * decode.distances().unsqueeze(1)
        mixed = decode(0, *places(row, place, place + 1), rule, bias)
        torch.testing.assert_close(mixed, whole[place : place + 1], atol=1e-5, rtol=1e-5)


def test_each_row_looks_back_at_its_own_memory() -> None:
    rule, lengths, sizes = Rule(causal=False, scale=0.4), (3, 1, 4), (2, 6, 3)
    rows, memories = make_rows(*lengths), make_rows(*sizes, seed=2)
    hidden = torch.cat([k.flatten(1) for _, k, _ in memories])
    _, k, v = end_to_end(memories)
    cache = cache_of(3, 8)
    queries = torch.cat([q for q, _, _ in rows])
    wanted = [
        torch.stack(
            [
                torch.stack(
                    [(q[t, h] @ mk[:, h // 2].T * rule.scale).softmax(dim=0) @ mv[:, h // 2] for h in range(HEADS)]
                )
                for t in range(len(q))
            ]
        )
        for (q, _, _), (_, mk, mv) in zip(rows, memories, strict=True)
    ]
    prefill = PrefillAttend(cache, 0, lengths, memory=Memory(hidden, sizes))
    mixed = prefill.cross(0, queries, lambda _: (k, v), rule)
    torch.testing.assert_close(mixed, torch.cat(wanted), atol=1e-5, rtol=1e-5)
    last = torch.stack([q[-1] for q, _, _ in rows])
    later = DecodeAttend(cache, torch.tensor(lengths)).cross(0, last, lambda _: (k, v), rule)
    torch.testing.assert_close(later, torch.stack([one[-1] for one in wanted]), atol=1e-5, rtol=1e-5)


def test_how_long_rows_are_is_told_of_every_token() -> None:
    assert PackedAttend((2, 3)).row_lengths().tolist() == [2, 2, 3, 3, 3]
    assert PackedAttend((1, 2), shared=3).row_lengths().tolist() == [5, 5, 5, 4, 5, 5]
    assert DecodeAttend(cache_of(2, 8), torch.tensor([1, 4]), 2).row_lengths().tolist() == [3, 3, 6, 6]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_rows_side_by_side_and_end_to_end_hold_the_same(lengths: list[int]) -> None:
    x, layout = torch.randn(sum(lengths), 2), Layout(lengths)
    rows = layout.spread(x)
    assert rows.shape == (len(lengths), max(lengths), 2)
    assert torch.equal(layout.pack(rows), x)
    for row, length, part in zip(rows, lengths, x.split(lengths), strict=True):
        assert torch.equal(row[:length], part)


def test_positions_begin_anew_in_each_row_after_what_all_share() -> None:
    assert row_positions([2, 3]).tolist() == [0, 1, 0, 1, 2]
    assert row_positions([2, 1], shared=2).tolist() == [0, 1, 2, 3, 2]


@pytest.mark.parametrize(
    ("rows", "longest", "expected"),
    [
        ([list(range(20))], None, 0),
        ([[*range(12), 50], [*range(12), 60, 61]], None, 12),
        ([[*range(12), 50], [*range(12), 60, 61]], 9, 9),
        ([list(range(12)), [*range(12), 1]], None, 11),
        ([[1, 2, 3, 9], [1, 2, 3, 8]], None, 0),
    ],
    ids=["one row", "equal beginnings", "at most", "a token is left in each", "too few to be worth it"],
)
def test_rows_share_what_they_all_begin_with(rows: list[list[int]], longest: int | None, expected: int) -> None:
    assert shared_prefix(rows, longest) == expected
