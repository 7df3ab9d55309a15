"""A program is written once for a network, and never outlives what it was written of."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path

import pytest
import torch

from danlu.core.records import GenerateOptions
from danlu.models.fastest import make_executor
from danlu.models.generate import generate
from danlu.models.load import load_model
from danlu.models.model import Model, set_layer
from danlu.models.native import programs
from danlu.models.native.kernels import Kernels, load_kernels
from danlu.models.native.programs import program_of
from danlu.models.paged import PagedCache, Segment
from danlu.models.quant import Int8Linear
from tests.tiny import write_tiny

pytestmark = pytest.mark.skipif(load_kernels() is None, reason="the kernels are not built here")
GREEDY = GenerateOptions(max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(params=["plain", "int8"])
def model(request: pytest.FixtureRequest, folder: Path) -> Model:
    return load_model(folder, precision="fp32", scheme=None if request.param == "plain" else "int8", is_packed=True)


def kernels() -> Kernels:
    found = load_kernels()
    assert found is not None
    return found


def answer(model: Model) -> tuple[int, ...]:
    return generate(model, ["a navy dress"], GREEDY)[0].token_ids


def test_it_is_written_once(model: Model) -> None:
    head = model.network.head
    first = program_of(kernels(), model.network, head)
    answer(model)
    assert program_of(kernels(), model.network, head) is first


def test_a_weight_that_changed_in_place_or_was_replaced_is_packed_anew(model: Model) -> None:
    head, before = model.network.head, answer(model)
    first = program_of(kernels(), model.network, head)
    norm = model.network.stack.norm
    assert norm is not None
    with torch.no_grad():
        dict(norm.named_parameters())["weight"].neg_()
    second = program_of(kernels(), model.network, head)
    assert second is not first
    assert answer(model) != before
    replaced = torch.nn.Linear(64, 32, bias=False).requires_grad_(False)
    set_layer(model.network, "stack.blocks.0.feedforward.inner.down", replaced)
    assert program_of(kernels(), model.network, head) is not second


def test_a_network_that_may_train_is_left_to_torch(folder: Path) -> None:
    model = load_model(folder, precision="fp32")
    before = answer(model)
    assert model.network not in programs._known
    with torch.no_grad():
        for parameter in model.network.stack.parameters():
            parameter.mul_(-1.5)
    assert answer(model) != before


def test_it_goes_with_its_network(folder: Path) -> None:
    model = load_model(folder, precision="fp32", is_packed=True)
    program = weakref.ref(program_of(kernels(), model.network, model.network.head))
    network = weakref.ref(model.network)
    answer(model)
    del model
    gc.collect()
    assert network() is None
    assert program() is None


def test_threads_that_generate_at_once_share_it(model: Model) -> None:
    expected = answer(model)
    found: list[tuple[int, ...]] = []
    threads = [threading.Thread(target=lambda: found.append(answer(model))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_whoever_owns_the_network_keeps_one_copy_of_its_weights(folder: Path) -> None:
    model = load_model(folder, precision="fp32", scheme="int8")
    plain = load_model(folder, precision="fp32", scheme="int8", is_packed=True)
    executor = make_executor(model, PagedCache(model.stack_config, 4, torch.float32), owns_network=True)
    linears = [layer for layer in model.network.modules() if isinstance(layer, Int8Linear)]
    assert linears
    assert all(layer.weight.device.type == "meta" for layer in linears)
    shapes = [layer.weight.shape for layer in plain.network.modules() if isinstance(layer, Int8Linear)]
    assert [layer.weight.shape for layer in linears] == shapes
    table = dict(model.network.embedding.named_buffers())["tokens.weight"]
    assert table.device.type == "cpu", "the table that the head shared is looked up"
    other = make_executor(plain, PagedCache(plain.stack_config, 4, torch.float32))
    segments = [Segment((0,), 0, 3)]
    assert torch.equal(executor.run([5, 6, 7], segments, [2]), other.run([5, 6, 7], segments, [2]))
