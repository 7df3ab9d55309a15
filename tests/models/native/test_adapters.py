"""Adapters in one pass add to the tokens of their rows what they would add to the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from danlu.models.adapters import Factors
from danlu.models.model import Model
from danlu.models.native.executor import NativeExecutor
from danlu.models.paged import Segment
from tests.models.native.cases import family, native, needs_kernels, plain
from tests.models.peer import some_ids

pytestmark = [pytest.mark.usefixtures("one_thread"), needs_kernels]


def some_factors(executor: NativeExecutor, seed: int, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """For every linear, the head's too."""
    generator = torch.Generator().manual_seed(seed)
    program = executor._passes.program
    return {
        name: (
            torch.randn(rank, inputs, generator=generator) * 0.1,
            torch.randn(outputs, rank, generator=generator) * 0.1,
        )
        for name, (outputs, inputs) in zip(program.products, program.product_shapes, strict=True)
    }


def merged(folder: Path, factors: Factors) -> Model:
    """The same model with the adapter in its weights."""
    model = family("llama", folder)
    for name, (down, up) in factors.items():
        weight = model.network.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight.data += up @ down
    return model


@pytest.mark.parametrize("num_threads", [1, 2])
def test_rows_of_one_pass_use_adapters_of_their_own(tmp_path: Path, num_threads: int) -> None:
    model = family("llama", tmp_path / "base")
    executor = native(model, num_threads=num_threads)
    factors = {1: some_factors(executor, 1, 4), 3: some_factors(executor, 2, 9)}
    for adapter, found in factors.items():
        executor.put_adapter(adapter, found)
    ids = [some_ids(7, seed=row, vocabulary=100) for row in range(3)]
    segments = [Segment([row], 0, 7, adapter=adapter) for row, adapter in enumerate((3, 0, 1))]
    outs = [20, 6, 13, 7]
    logits = executor.run([i for row in ids for i in row], segments, outs).clone()
    for row, adapter in enumerate((3, 0, 1)):
        alone = merged(tmp_path / str(adapter), factors.get(adapter, {}))
        expected = plain(alone).run(ids[row], [Segment([0], 0, 7)], list(range(7)))
        for place, out in enumerate(outs):
            if out // 7 == row:
                torch.testing.assert_close(logits[place], expected[out % 7], atol=2e-4, rtol=1e-4)


def test_an_emptied_adapter_adds_nothing(tmp_path: Path) -> None:
    executor = native(family("llama", tmp_path))
    ids, segment = some_ids(5, vocabulary=100), Segment([0], 0, 5)
    before = executor.run(ids, [segment], [4]).clone()
    with_adapter = Segment([0], 0, 5, adapter=1)
    executor.put_adapter(1, some_factors(executor, 1, 3))
    assert not torch.allclose(executor.run(ids, [with_adapter], [4]), before)
    assert torch.equal(executor.run(ids, [segment], [4]), before)
    executor.put_adapter(1, {})
    assert torch.equal(executor.run(ids, [with_adapter], [4]), before)


def test_factors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    executor = native(family("llama", tmp_path))
    name = "stack.blocks.0.mixer.inner.out"
    with pytest.raises(AssertionError, match="no linear is named nothing"):
        executor.put_adapter(1, {"nothing": (torch.zeros(1, 32), torch.zeros(32, 1))})
    with pytest.raises(AssertionError, match=r"\(2, 31\) is not \(2, 32\)"):
        executor.put_adapter(1, {name: (torch.zeros(2, 31), torch.zeros(32, 2))})
    with pytest.raises(AssertionError, match=r"\(32, 3\) is not \(32, 2\)"):
        executor.put_adapter(1, {name: (torch.zeros(2, 32), torch.zeros(32, 3))})
    with pytest.raises(AssertionError, match="the rank is 1025, the most 1024"):
        executor.put_adapter(1, {name: (torch.zeros(1025, 32), torch.zeros(32, 1025))})


@pytest.mark.parametrize("scheme", [None, "int8"])
def test_an_answer_with_an_adapter_does_not_depend_on_its_batch(tmp_path: Path, scheme: str | None) -> None:
    model = family("llama", tmp_path, precision="bf16", scheme=scheme)
    executor = native(model, torch.bfloat16, num_threads=2)
    for adapter, rank in ((1, 3), (2, 16), (3, 40), (4, 90)):
        executor.put_adapter(adapter, some_factors(executor, adapter, rank))
    counts, adapters = (7, 1, 5, 1, 1, 1, 3, 9), (1, 2, 2, 2, 2, 3, 4, 0)
    ids = [some_ids(count, seed=row, vocabulary=100) for row, count in enumerate(counts)]
    segments = [Segment([row], 0, count, adapter=adapters[row]) for row, count in enumerate(counts)]
    flat = [token for row in ids for token in row]
    together = executor.run(flat, segments, range(len(flat))).clone().split(list(counts))
    for row, count in enumerate(counts):
        alone = executor.run(ids[row], [segments[row]], range(count))
        assert torch.equal(alone, together[row]), f"row {row}"
        for place in range(count):
            step = Segment([row], place, 1, adapter=adapters[row])
            assert torch.equal(executor.run([ids[row][place]], [step], [0])[0], together[row][place])


@pytest.mark.parametrize("rank", [1, 15, 16, 17, 33, 64, 65, 130])
def test_adapters_of_every_rank_add_their_product(tmp_path: Path, rank: int) -> None:
    model = family("llama", tmp_path / "base")
    executor = native(model)
    factors = some_factors(executor, rank, rank)
    for _, up in factors.values():
        up[:, rank // 3 : rank // 2] = 0.0  # where a part of a fused linear has nothing to say
        up[: up.shape[0] // 2, rank // 2 :] = 0.0
    executor.put_adapter(1, factors)
    ids = some_ids(6, vocabulary=100)
    found = executor.run(ids, [Segment([0], 0, 6, adapter=1)], range(6))
    expected = plain(merged(tmp_path / "merged", factors)).run(ids, [Segment([0], 0, 6)], range(6))
    torch.testing.assert_close(found, expected, atol=5e-4, rtol=5e-4)
