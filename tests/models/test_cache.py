"""The cache keeps what it was given, row by row."""

from __future__ import annotations

import torch

from danlu.models.attention import AttentionConfig
from danlu.models.block import LayerConfig, StackConfig
from danlu.models.cache import KVCache
from danlu.models.norms import NormConfig

ATTENTION = AttentionConfig(num_heads=4, num_kv_heads=2, head_width=3)
CONFIG = StackConfig(
    width=12, layers=(LayerConfig(mixer=ATTENTION, cross=ATTENTION),) * 2, norm=NormConfig(), context_length=16
)


def cache(rows: int = 3, tokens: int = 6, memory: int = 4) -> KVCache:
    return KVCache(CONFIG, rows, tokens, torch.float32, torch.device("cpu"), memory)


def numbers(*shape: int, first: int = 1) -> torch.Tensor:
    return torch.arange(first, first + torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def read(kept: KVCache, layer: int, rows: int, span: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What an append of nothing shows."""
    nothing = torch.zeros(rows, 0, 2, 3)
    return kept.append(layer, torch.zeros(rows, 0, dtype=torch.long), nothing, nothing, span, None)


def test_rows_are_written_from_their_start_after_what_they_share() -> None:
    kept = cache()
    k = numbers(2 + 1 + 3, 2, 3)  # two shared tokens, rows of one and three
    kept.write_rows(1, 1, [1, 3], 2, k, -k)
    keys, values = read(kept, 1, 3, 5)
    assert torch.equal(keys[1, :, :3], k[:3].transpose(0, 1))
    assert torch.equal(keys[2], k[[0, 1, 3, 4, 5]].transpose(0, 1))
    assert torch.equal(values, -keys)
    assert not keys[0].any()


def test_new_tokens_stand_where_each_row_ends() -> None:
    kept = cache()
    new = numbers(2, 2, 2, 3)
    keys, _ = kept.append(0, torch.tensor([[1, 2], [3, 4]]), new, new, 5, None)
    assert torch.equal(keys[0, :, 1:3], new[0].transpose(0, 1))
    assert torch.equal(keys[1, :, 3:5], new[1].transpose(0, 1))
    assert not keys[0, :, 3:].any()


def test_one_place_for_all_rows_is_the_same_by_slice_and_by_index() -> None:
    new, places = numbers(3, 2, 2, 3), torch.tensor([[2, 3]] * 3)
    sliced = cache().append(0, places, new, -new, 4, 2)
    indexed = cache().append(0, places, new, -new, 4, None)
    assert all(torch.equal(a, b) for a, b in zip(sliced, indexed, strict=True))


def test_memory_is_kept_side_by_side_and_its_padding_is_hidden() -> None:
    kept = cache()
    kept.expect_memory(0, [2, 4])
    k = numbers(2, 4, 2, 3)
    kept.write_memory(0, 0, k, -k)
    keys, values, mask = kept.memory(0, 2)
    assert torch.equal(keys, k.transpose(1, 2))
    assert torch.equal(values, -keys)
    assert mask.flatten(1).tolist() == [[0.0, 0.0, float("-inf"), float("-inf")], [0.0] * 4]


def test_a_row_moves_with_all_that_is_kept_of_it() -> None:
    kept = cache()
    kept.expect_memory(0, [1, 2, 3])
    k, m = numbers(6, 2, 3), numbers(3, 3, 2, 3)
    kept.write_rows(0, 0, [1, 2, 3], 0, k, k)
    kept.write_memory(0, 0, m, m)
    kept.move_row(2, 0, 3)
    assert torch.equal(read(kept, 0, 1, 3)[0][0], k[3:].transpose(0, 1))
    keys, _, mask = kept.memory(0, 1)
    assert torch.equal(keys[0], m[2].transpose(0, 1))
    assert mask.shape[-1] == 3


def test_reordering_copies_rows() -> None:
    kept = cache()
    kept.expect_memory(0, [1, 2, 3])
    k = numbers(6, 2, 3)
    kept.write_rows(0, 0, [2, 2, 2], 0, k, k)
    kept.reorder(torch.tensor([2, 2, 0]))
    keys, _ = read(kept, 0, 3, 2)
    rows = k.view(3, 2, 2, 3).transpose(1, 2)
    assert torch.equal(keys, rows[[2, 2, 0]])
    assert kept.memory_lengths.tolist() == [3, 3, 1]


def test_a_grown_cache_holds_the_same() -> None:
    kept = cache()
    kept.expect_memory(0, [1, 2, 3])
    k = numbers(6, 2, 3)
    kept.write_rows(1, 0, [2, 2, 2], 0, k, k)
    larger = kept.grown(5, 9)
    assert (larger.num_rows, larger.num_tokens) == (5, 9)
    assert torch.equal(read(larger, 1, 3, 6)[0], read(kept, 1, 3, 6)[0])
    assert larger.memory_lengths.tolist() == [1, 2, 3, 0, 0]


def test_its_size_is_that_of_its_numbers() -> None:
    # 2 layers × keys and values × 3 rows × 2 heads × (6 tokens + 4 of memory) × 3 channels × 4 bytes
    assert cache().size_bytes() == 2 * 2 * 3 * 2 * (6 + 4) * 3 * 4
