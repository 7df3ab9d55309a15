"""What tests of the native path have in common: whether this machine has it, models of families, rows in odd pages."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from danlu.models.executor import TorchExecutor
from danlu.models.load import load_model
from danlu.models.model import Model, Precision
from danlu.models.native.executor import NativeExecutor
from danlu.models.native.kernels import load_kernels
from danlu.models.paged import MemoryPages, PagedCache, Segment
from tests.models.case import save_peer
from tests.models.families import FAMILIES
from tests.models.peer import some_ids

needs_kernels = pytest.mark.skipif(load_kernels() is None, reason="no compiler, or no AVX-512")
NUM_PAGES = 24
SLOT_PAGES = 4
"""Pages of each row."""


def family(name: str, folder: Path, *, precision: Precision = "fp32", scheme: str | None = None) -> Model:
    """Ours of a tiny model of transformers."""
    save_peer(FAMILIES[name].make(), folder)
    return load_model(folder, precision=precision, scheme=scheme, with_tokenizer=False)


def cache_of(model: Model, dtype: torch.dtype = torch.float32) -> PagedCache:
    """Empty pages."""
    return PagedCache(model.config.stack, NUM_PAGES, dtype, num_slots=8, num_memory_pages=NUM_PAGES)


def native(model: Model, dtype: torch.dtype = torch.float32, num_threads: int = 1) -> NativeExecutor:
    """The executor in C over empty pages."""
    kernels = load_kernels()
    assert kernels is not None
    return NativeExecutor(kernels, model, cache_of(model, dtype), num_threads)


def plain(model: Model, dtype: torch.dtype = torch.float32) -> TorchExecutor:
    """The executor in torch over empty pages."""
    return TorchExecutor(model, cache_of(model, dtype))


def tables(num_rows: int, seed: int = 0) -> list[list[int]]:
    """Pages of rows, in no order."""
    pages = list(range(NUM_PAGES))
    random.Random(seed).shuffle(pages)
    return [pages[row * SLOT_PAGES : (row + 1) * SLOT_PAGES] for row in range(num_rows)]


Step = Sequence[tuple[int, int]]
"""(row, new tokens) of each segment of a pass."""
MIXED_STEPS: tuple[Step, ...] = (
    (((0, 7), (1, 3))),
    ((0, 1), (1, 9), (2, 20)),
    ((0, 1), (1, 1), (2, 1)),
    ((2, 9), (0, 1)),
)
"""Rows read whole, in pieces and token by token, side by side."""


def written(
    executor: NativeExecutor | TorchExecutor, steps: Sequence[Step], vocabulary: int, *, every: bool = True
) -> list[Tensor]:
    """What an executor says in passes over rows of random ids: logits of every new token, or of each row's last."""
    rows = [some_ids(400, seed=row, vocabulary=vocabulary) for row in range(6)]
    lengths, places = [0] * 6, tables(6)
    memories = remembered(executor, vocabulary)
    found: list[Tensor] = []
    for step in steps:
        ids = [i for row, count in step for i in rows[row][lengths[row] : lengths[row] + count]]
        segments = [Segment(places[row], lengths[row], count, row, memories[row]) for row, count in step]
        ends = torch.tensor([count for _, count in step]).cumsum(0).tolist()
        outs = list(range(len(ids))) if every else [end - 1 for end in ends]
        found.append(executor.run(ids, segments, outs).clone())
        for row, count in step:
            lengths[row] += count
    return found


def remembered(executor: NativeExecutor | TorchExecutor, vocabulary: int) -> list[MemoryPages | None]:
    """Sources of six rows, read; nothing where the model has no encoder."""
    if not any(executor.cache.memory_keys[layer].numel() for layer in range(executor.cache.config.num_layers)):
        return [None] * 6
    memories = [MemoryPages(pages, 3 + 5 * row) for row, pages in enumerate(tables(6, seed=1))]
    sources = [some_ids(memory.length, seed=20 + row, vocabulary=vocabulary) for row, memory in enumerate(memories)]
    executor.remember(sources, memories)
    return list(memories)


def close_to(found: Sequence[Tensor], expected: Sequence[Tensor], atol: float = 1e-4) -> None:
    """Each pass, with the numbers when it is not."""
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=1e-4)
