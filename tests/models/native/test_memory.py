"""What a decoder keeps of an encoder's hidden states is what torch makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from danlu.models.native.executor import NativeExecutor
from danlu.models.native.kernels import load_kernels
from danlu.models.native.memory import write_memory
from danlu.models.network import EncoderDecoder
from danlu.models.paged import Segment
from tests.models.families import FAMILIES
from tests.models.native.cases import (
    MIXED_STEPS,
    NUM_PAGES,
    cache_of,
    close_to,
    family,
    native,
    needs_kernels,
    plain,
    remembered,
    written,
)

pytestmark = [pytest.mark.usefixtures("one_thread"), needs_kernels]


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_pages_of_the_memory_hold_what_torch_puts_there(name: str, tmp_path: Path) -> None:
    model, vocabulary = family(name, tmp_path), FAMILIES[name].vocabulary
    ours, theirs = native(model, num_threads=2), plain(model)
    for executor in (ours, theirs):
        written(executor, MIXED_STEPS[:1], vocabulary)  # torch makes them in its first pass
    for kind in ("memory_keys", "memory_values"):
        for pool, other in zip(getattr(ours.cache, kind), getattr(theirs.cache, kind), strict=True):
            torch.testing.assert_close(pool, other, atol=1e-5, rtol=1e-4)
            assert bool(pool.any()), "nothing is there"


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_an_encoder_decoder_with_8_bit_weights_says_what_torch_says(name: str, tmp_path: Path) -> None:
    model, vocabulary = family(name, tmp_path, scheme="int8"), FAMILIES[name].vocabulary
    found, expected = written(native(model), MIXED_STEPS, vocabulary), written(plain(model), MIXED_STEPS, vocabulary)
    close_to(found, expected, atol=0.1)  # they round what a product reads in groups of their own


def test_rows_that_share_a_memory_get_the_same_bits_as_those_that_do_not(tmp_path: Path) -> None:
    """Beams look at the memory of their source together."""
    model = family("bart", tmp_path)
    together, apart = native(model, num_threads=2), native(model)
    remembered(together, FAMILIES["bart"].vocabulary)
    memories = remembered(apart, FAMILIES["bart"].vocabulary)
    memory, other = memories[1], memories[4]
    segments = [Segment((row,), 0, count, memory=source) for row, (count, source) in enumerate(
        [(1, memory), (3, memory), (1, memory), (1, other), (2, memory), *[(1, other)] * 20]
    )]  # fmt: skip
    segments = segments[:NUM_PAGES]
    ids = [5 + place % 7 for place in range(sum(segment.count for segment in segments))]
    found, first = together.run(ids, segments, range(len(ids))).clone(), 0
    for segment in segments:
        some = ids[first : first + segment.count]
        alone = apart.run(some, [segment], range(segment.count))
        assert torch.equal(found[first : first + segment.count], alone)
        first += segment.count


def test_a_decoder_alone_has_no_memory(tmp_path: Path) -> None:
    kernels = load_kernels()
    assert kernels is not None
    assert write_memory(kernels, family("llama", tmp_path).network, releases=False) is None
    network = family("bart", tmp_path / "bart").network
    assert isinstance(network, EncoderDecoder)
    program = write_memory(kernels, network, releases=False)
    assert program is not None
    assert program.num_body == len(program.ops) == 3 * len(network.stack.blocks)


def test_an_executor_with_a_network_of_its_own_says_the_same(tmp_path: Path) -> None:
    """It lets go of torch's weights, those of the encoder and of the memory too."""
    kernels = load_kernels()
    assert kernels is not None
    shared, own = (family("bart", tmp_path) for _ in range(2))
    owning = NativeExecutor(kernels, own, cache_of(own), 1, owns_network=True)
    vocabulary = FAMILIES["bart"].vocabulary
    close_to(written(owning, MIXED_STEPS, vocabulary), written(native(shared), MIXED_STEPS, vocabulary), atol=0.0)
    left = [name for name, weight in own.network.named_parameters() if weight.device.type != "meta"]
    assert not [name for name in left if name.endswith(("kv.weight", "qkv.weight", "up.weight"))]
