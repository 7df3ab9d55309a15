"""Pages are copied as torch copies them, and no more of them than is asked for is needed."""

from __future__ import annotations

import pytest
import torch

from danlu.models.attention import AttentionConfig
from danlu.models.block import LayerConfig, StackConfig
from danlu.models.native.copies import Copier
from danlu.models.native.kernels import load_kernels
from danlu.models.norms import NormConfig
from danlu.models.paged import PAGE, PagedCache
from tests.models.native.cases import needs_kernels

pytestmark = needs_kernels

PAIRS = [(3, 6), (1, 0), (3, 7), (2, 5)]


def copier(cache: PagedCache) -> Copier:
    kernels = load_kernels()
    assert kernels is not None
    others = [*cache.values, *cache.key_scales, *cache.value_scales]
    return Copier(kernels, [pool for pool in others if pool.numel()], cache.keys)


def filled(dtype: torch.dtype) -> PagedCache:
    """Two layers of another shape each, full of random numbers."""
    generator = torch.Generator().manual_seed(0)
    layers = tuple(LayerConfig(mixer=AttentionConfig(num_heads=heads, num_kv_heads=heads, head_width=width))
                   for heads, width in ((2, 24), (3, 8)))  # fmt: skip
    cache = PagedCache(StackConfig(width=48, layers=layers, norm=NormConfig(), context_length=64), 9, dtype)
    for pool in (*cache.keys, *cache.values, *cache.key_scales, *cache.value_scales):
        pool.copy_(torch.randint(-99, 99, pool.shape, generator=generator))
    return cache


def pools(cache: PagedCache) -> list[torch.Tensor]:
    """Tokens last but one."""
    along = [*cache.values, *(scale.unsqueeze(-1) for scale in (*cache.key_scales, *cache.value_scales))]
    return [pool for pool in (*along, *(pool.transpose(-1, -2) for pool in cache.keys)) if pool.numel()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("counts", [[64, 64, 64, 64], [1, 0, 33, 63], [32, 64, 31, 17]])
def test_targets_begin_as_their_sources_and_all_else_stays(dtype: torch.dtype, counts: list[int]) -> None:
    cache = filled(dtype)
    before = [pool.clone() for pool in pools(cache)]
    copier(cache).copy(PAIRS, counts)
    for pool, old in zip(pools(cache), before, strict=True):
        for (source, target), count in zip(PAIRS, counts, strict=True):
            assert torch.equal(pool[target, :, :count], old[source, :, :count])
            rest = pool[target, :, count:]
            is_old, is_new = rest == old[target, :, count:], rest == old[source, :, count:]
            assert bool((is_old | is_new).all()), "of what is not asked for anything may come along"
        others = [page for page in range(9) if page not in [target for _, target in PAIRS]]
        assert torch.equal(pool[others], old[others])


@pytest.mark.parametrize("counts", [None, [64, 64, 64, 64]])
def test_a_cache_copies_with_and_without_kernels_alike(counts: list[int] | None) -> None:
    ours, theirs = filled(torch.bfloat16), filled(torch.bfloat16)
    theirs.__dict__["_copier"] = None
    for cache in (ours, theirs):
        cache.copy_pages(PAIRS, counts)
        cache.copy_pages([])
    assert all(torch.equal(a, b) for a, b in zip(pools(ours), pools(theirs), strict=True))


def test_pages_that_do_not_exist_are_not_copied() -> None:
    cache = filled(torch.float32)
    with pytest.raises(AssertionError, match="there are 9 pages"):
        copier(cache).copy([(0, 9)], [PAGE])
    with pytest.raises(AssertionError, match="a page has 64 tokens"):
        copier(cache).copy([(0, 1)], [65])
