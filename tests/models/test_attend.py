"""Rows that share a pass behave like each row alone, whether they are read at once or written token by token."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from danlu.models.attend import Layout, Memory, PackedAttend, row_positions, shared_prefix
from danlu.models.attention import AttentionConfig
from danlu.models.block import LayerConfig, StackConfig
from danlu.models.norms import NormConfig
from danlu.models.paged import PAGE, MemoryPages, PagedAttend, PagedCache, Segment
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


def cache_of(num_pages: int) -> PagedCache:
    attention = AttentionConfig(num_heads=HEADS, num_kv_heads=KV_HEADS, head_width=WIDTH)
    stack = StackConfig(
        width=HEADS * WIDTH,
        layers=(LayerConfig(mixer=attention, cross=attention),),
        norm=NormConfig(),
        context_length=num_pages * PAGE,
    )
    return PagedCache(stack, num_pages, torch.float32, num_memory_pages=4)


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


@pytest.mark.parametrize("counts", [(1, 1, 1), (3, 3, 3), (1, 70, 2)], ids=["one each", "three each", "mixed"])
@pytest.mark.parametrize("rule", CAUSAL.values(), ids=CAUSAL)
def test_rows_read_in_pieces_are_rows_read_at_once(rule: Rule, counts: tuple[int, ...]) -> None:
    lengths, tables, cache = (2, 63, 5), ((5, 0), (3, 1, 2, 6), (4, 7)), cache_of(8)
    rows = make_rows(*(length + 2 * count for length, count in zip(lengths, counts, strict=True)))
    done = [0, 0, 0]
    for new in (lengths, counts, counts):
        segments = [Segment(*one) for one in zip(tables, done, new, strict=True)]
        some = [places(row, n, n + count) for row, n, count in zip(rows, done, new, strict=True)]
        mixed = PagedAttend(cache, segments)(0, *end_to_end(some), rule, None)
        wanted = [alone(row, rule)[n : n + count] for row, n, count in zip(rows, done, new, strict=True)]
        torch.testing.assert_close(mixed, torch.cat(wanted), atol=1e-5, rtol=1e-5)
        done = [n + count for n, count in zip(done, new, strict=True)]


def test_a_bias_by_distance_is_the_same_at_once_and_token_by_token() -> None:
    rule, cache, (row,) = RULES["causal"], cache_of(1), make_rows(6)
    packed = PackedAttend((6,))
    slope = torch.tensor([0.1, 0.2, 0.3, 0.4]).view(HEADS, 1, 1)
    whole = packed(0, *row, rule, slope * packed.distances())
    for start, stop in ((0, 4), (4, 5), (5, 6)):
        paged = PagedAttend(cache, [Segment((0,), start, stop - start)])
        mixed = paged(0, *places(row, start, stop), rule, slope * paged.distances().unsqueeze(1))
        torch.testing.assert_close(mixed, whole[start:stop], atol=1e-5, rtol=1e-5)


def test_each_row_looks_back_at_its_own_memory() -> None:
    rule, lengths, sizes = Rule(causal=False, scale=0.4), (3, 1, 4), (2, 6, 3)
    rows, memories = make_rows(*lengths), make_rows(*sizes, seed=2)
    hidden = torch.cat([k.flatten(1) for _, k, _ in memories])
    _, k, v = end_to_end(memories)
    cache = cache_of(4)
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
    packed = PackedAttend(lengths, memory=Memory(hidden, sizes))
    mixed = packed.cross(0, queries, lambda _: (k, v), rule)
    torch.testing.assert_close(mixed, torch.cat(wanted), atol=1e-5, rtol=1e-5)
    for page, (_, mk, mv) in enumerate(memories):
        cache.write_memory(0, [page], mk, mv)
    pages = [MemoryPages([page], size) for page, size in enumerate(sizes)]
    segments = [Segment((row,), 0, length, memory=pages[row]) for row, length in enumerate(lengths)]
    paged = PagedAttend(cache, segments).cross(0, queries, lambda _: (k, v), rule)
    torch.testing.assert_close(paged, torch.cat(wanted), atol=1e-5, rtol=1e-5)


def test_how_long_rows_are_is_told_of_every_token() -> None:
    assert PackedAttend((2, 3)).row_lengths().tolist() == [2, 2, 3, 3, 3]
    assert PackedAttend((1, 2), shared=3).row_lengths().tolist() == [5, 5, 5, 4, 5, 5]
    paged = PagedAttend(cache_of(2), [Segment((0,), 1, 2), Segment((1,), 4, 1)])
    assert paged.row_lengths().tolist() == [3, 3, 5]


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
