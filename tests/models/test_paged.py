"""Pages of 8-bit keys and values: what they hold, what they take, and that rows read of them stay themselves."""

from __future__ import annotations

import pytest
import torch

from danlu.models.attention import AttentionConfig
from danlu.models.block import LayerConfig, StackConfig
from danlu.models.norms import NormConfig
from danlu.models.paged import PAGE, MemoryPages, PagedAttend, PagedCache, Segment, bytes_of_page, quantize_heads
from danlu.models.product import Rule

HEADS, KV_HEADS, WIDTH = 4, 2, 24
RULE = Rule(scale=0.2)
Row = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def stack() -> StackConfig:
    attention = AttentionConfig(num_heads=HEADS, num_kv_heads=KV_HEADS, head_width=WIDTH)
    layers = (LayerConfig(mixer=attention, cross=attention),) * 2
    return StackConfig(width=HEADS * WIDTH, layers=layers, norm=NormConfig(), context_length=8 * PAGE)


def cache_of(dtype: torch.dtype = torch.int8) -> PagedCache:
    return PagedCache(stack(), 8, dtype, num_memory_pages=2)


def some(count: int, seed: int = 0) -> Row:
    """Queries, keys and values of tokens."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((count, heads, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS))
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    return q, k, v


def part(row: Row, start: int, end: int) -> Row:
    q, k, v = row
    return q[start:end], k[start:end], v[start:end]


def test_numbers_are_whole_steps_of_a_127th_of_the_largest() -> None:
    found, step = quantize_heads(torch.tensor([[1.0, -127.0, 2.5, 3.5], [0.0, 0.0, 0.0, 0.0], [0.5, 0.25, -0.5, 0.1]]))
    assert found.tolist() == [[1, -127, 2, 4], [0, 0, 0, 0], [127, 64, -127, 25]]
    torch.testing.assert_close(step, torch.tensor([1.0, 1e-12, 0.5 / 127]))
    assert found.dtype == torch.int8


def test_what_is_read_of_a_page_is_what_was_written_to_half_a_step() -> None:
    cache, (_, k, v) = cache_of(), some(70)
    pages = torch.tensor([5, 2])
    places = torch.arange(70)
    cache.write(1, (pages[places // PAGE], places % PAGE), k, v)
    keys, values = cache.read(1, pages, torch.float32)
    assert (keys.shape, values.shape) == ((2, KV_HEADS, WIDTH, PAGE), (2, KV_HEADS, PAGE, WIDTH))
    for found, written in ((keys.permute(0, 3, 1, 2), k), (values.transpose(1, 2), v)):
        half_step = written.abs().amax(-1, keepdim=True) / 254
        assert ((found.flatten(0, 1)[:70] - written).abs() <= half_step * 1.0001).all()
    assert not cache.keys[0].any()
    assert cache.read(1, pages, torch.bfloat16)[0].dtype == torch.bfloat16


def test_memory_is_about_half_of_bf16_and_told_exactly() -> None:
    config = stack()
    sizes = {dtype: bytes_of_page(config, dtype) for dtype in (torch.int8, torch.bfloat16)}
    assert sizes[torch.int8] == 2 * 2 * PAGE * KV_HEADS * (WIDTH + 4)
    assert sizes[torch.int8] < 0.6 * sizes[torch.bfloat16]
    for dtype, size in sizes.items():
        memory = bytes_of_page(config, dtype, of_memory=True)
        assert PagedCache(config, 8, dtype, num_memory_pages=2).size_bytes() == 8 * size + 2 * memory


def test_attention_over_8_bits_is_near_that_over_all_bits() -> None:
    rows, found = some(70), []
    for dtype in (torch.int8, torch.float32):
        cache = cache_of(dtype)
        parts = [
            PagedAttend(cache, [Segment((3, 0), start, end - start)])(0, *part(rows, start, end), RULE, None)
            for start, end in ((0, 60), (60, 61), (61, 70))
        ]
        found.append(torch.cat(parts))
    torch.testing.assert_close(*found, atol=2e-2, rtol=0)
    assert not torch.equal(*found)


def test_tokens_read_at_once_and_one_by_one_give_the_same() -> None:
    rows = some(20)
    whole = PagedAttend(cache_of(), [Segment((3,), 0, 20)])(0, *rows, RULE, None)
    cache = cache_of()
    parts = [
        PagedAttend(cache, [Segment((1,), start, 1)])(0, *part(rows, start, start + 1), RULE, None)
        for start in range(20)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-5)


def test_a_copied_page_is_read_like_its_source() -> None:
    cache, rows = cache_of(), some(9)
    PagedAttend(cache, [Segment((3,), 0, 8)])(0, *part(rows, 0, 8), RULE, None)
    cache.copy_pages([(3, 6)])
    original, copy = (PagedAttend(cache, [Segment((page,), 8, 1)])(0, *part(rows, 8, 9), RULE, None) for page in (3, 6))
    assert torch.equal(original, copy)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
def test_the_memory_of_an_encoder_lies_in_pages_of_the_same_kind(dtype: torch.dtype) -> None:
    (q, k, v), found = some(9), []
    for kind in (dtype, torch.float32):
        cache = cache_of(kind)
        cache.write_memory(0, [1], k, v)
        assert cache.memory_keys[0].dtype == kind
        segments = [Segment((0,), 0, 9, memory=MemoryPages([1], 9))]
        found.append(PagedAttend(cache, segments).cross(0, q, lambda _: (k, v), Rule(causal=False, scale=0.2)))
    torch.testing.assert_close(*found, atol=2e-2, rtol=0)
