"""Layers of experts in C say what they say in torch, whichever experts are chosen and whoever stands beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from danlu.models.encode import run_rows
from danlu.models.experts import Experts, ExpertsConfig
from danlu.models.fastest import own_reader
from danlu.models.load import load_model
from danlu.models.model import Precision
from danlu.models.native.kernels import load_kernels
from danlu.models.native.program import write_program
from danlu.models.native.structs import Code
from danlu.models.native.tower import NativeTower, native_tower
from danlu.models.network import Tower
from danlu.models.packed import pack_weights
from danlu.models.paged import Segment
from tests.models.native.cases import MIXED_STEPS, close_to, family, native, needs_kernels, plain, written
from tests.models.native.test_adapters import some_factors
from tests.models.peer import save_llama, some_ids

pytestmark = [pytest.mark.usefixtures("one_thread"), needs_kernels]

KINDS: list[tuple[Precision, str | None, torch.dtype]] = [
    ("fp32", None, torch.float32), ("bf16", None, torch.bfloat16), ("fp32", "int8", torch.int8),
]  # fmt: skip
LAYERS: list[dict[str, Any]] = [
    {"num_experts": 1, "top_k": 1},
    {"num_experts": 5, "top_k": 5, "normalise": True},
    {"num_experts": 17, "top_k": 3, "width": 33, "bias": True, "router_bias": True},
    {"num_experts": 130, "top_k": 18, "normalise": True, "width": 8},
    {"num_experts": 6, "top_k": 2, "gated": False, "activation": "gelu", "width": 70},
    {"num_experts": 6, "top_k": 2, "shared_width": 40},
    {"num_experts": 16, "top_k": 4, "shared_width": 40, "shared_gate": True, "bias": True},
    {"num_experts": 3, "top_k": 1, "capacity": 2},
    {"num_experts": 4, "top_k": 2, "capacity": 1, "shared_width": 9},
]
LENGTHS = [7, 1, 40, 19]


def tower(folder: Path, **numbers: Any) -> Tower:
    """A llama whose feed-forward layers are random experts."""
    save_llama(folder, max_position_embeddings=4096)
    network = load_model(folder, precision="fp32", with_tokenizer=False).network
    config = ExpertsConfig(**{"width": 24, **numbers})
    for block in network.stack.blocks:
        layer = config.make(network.stack.config.width)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        block.feedforward.inner = layer.eval()
    return network


def layers_of(network: Tower) -> list[Experts]:
    """All of them."""
    return [module for module in network.modules() if isinstance(module, Experts)]


def made(network: Tower, num_threads: int = 1) -> NativeTower:
    """The same in C."""
    found = native_tower(network, num_threads=num_threads)
    assert found is not None
    return found


@torch.inference_mode()
def same_as_torch(network: Tower, lengths: list[int], num_threads: int) -> None:
    """Rows of random ids."""
    ids = some_ids(sum(lengths))
    expected = network.rows(torch.tensor(ids), lengths)
    torch.testing.assert_close(made(network, num_threads).encode(ids, lengths), expected, atol=3e-4, rtol=1e-3)


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("numbers", LAYERS)
def test_layers_of_every_shape_say_what_torch_says(numbers: dict[str, Any], num_threads: int, tmp_path: Path) -> None:
    network = tower(tmp_path, **numbers)
    for lengths in (LENGTHS, [1], [2, 1]):
        same_as_torch(network, lengths, num_threads)


@pytest.mark.parametrize("num_threads", [1, 4])
def test_one_expert_may_have_all_tokens_and_the_others_none(num_threads: int, tmp_path: Path) -> None:
    network = tower(tmp_path, num_experts=7, top_k=1, router_bias=True)
    for layer in layers_of(network):
        assert layer.router.bias is not None
        layer.router.bias.data[4] += 100.0
    same_as_torch(network, [1700, 3], num_threads)  # more rows than are taken together


def test_weights_that_torch_packed_are_known_and_may_go(tmp_path: Path) -> None:
    network = tower(tmp_path, num_experts=4, top_k=2, shared_width=16)
    ids = some_ids(9)
    with torch.inference_mode():
        expected = network.rows(torch.tensor(ids), [9])
    pack_weights(network)
    kernels = load_kernels()
    assert kernels is not None
    owned = NativeTower(kernels, network, torch.float32, 1, releases=True)
    torch.testing.assert_close(owned.encode(ids, [9]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scheme", [None, "int8"])
def test_an_owned_network_of_experts_holds_its_weights_once(scheme: str | None, tmp_path: Path) -> None:
    model = family("mixtral-classify", tmp_path, scheme=scheme)
    rows = [(some_ids(length, vocabulary=100), [0] * length) for length in (5, 9)]
    expected = run_rows(model, rows)
    assert own_reader(model)
    for layer in layers_of(model.network):
        assert layer.down.weight.is_meta
    for ours, theirs in zip(run_rows(model, rows), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4 if scheme is None else 0.1, rtol=1e-2)


@pytest.mark.parametrize(("name", "atol"), [("mixtral", 2e-4), ("qwen3-moe", 2e-4), ("switch-router-bias", 2e-4)])
def test_8_bit_experts_say_what_torch_says(name: str, atol: float, tmp_path: Path) -> None:
    model = family(name, tmp_path, scheme="int8")  # rows of one group: both round alike
    close_to(written(native(model), MIXED_STEPS, 100), written(plain(model), MIXED_STEPS, 100), atol=atol)


@pytest.mark.parametrize("name", ["qwen3-moe", "olmoe"])
def test_experts_in_bf16_are_near_those_in_fp32(name: str, tmp_path: Path) -> None:
    found = written(native(family(name, tmp_path / "half", precision="bf16")), MIXED_STEPS, 100)
    exact = written(native(family(name, tmp_path / "whole")), MIXED_STEPS, 100)
    close_to(found, exact, atol=0.1)


@pytest.mark.parametrize(("precision", "scheme", "dtype"), KINDS)
def test_a_row_gets_the_same_bits_alone_and_in_any_company(
    precision: Precision, scheme: str | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = family("qwen3-moe", tmp_path, precision=precision, scheme=scheme)
    steps = [[(0, 60), (1, 3), (2, 9), (3, 41)], [(0, 1), (1, 1), (2, 1)], [(0, 1), (3, 17)]]
    one, *others = (written(native(model, dtype, threads), steps, 100) for threads in (1, 2, 5))
    for found in others:
        assert all(torch.equal(a, b) for a, b in zip(one, found, strict=True))
    alone = written(native(model, dtype), [[(0, 60)], [(0, 1)], [(0, 1)]], 100)
    pieces = written(native(model, dtype), [[(0, 4)], [(0, 55), (2, 1)], [(0, 1)], [(0, 1)]], 100)
    assert torch.equal(one[0][:60], alone[0])
    assert torch.equal(one[1][0], alone[1][0])
    assert torch.equal(one[2][0], alone[2][0])
    assert torch.equal(torch.cat([pieces[0], pieces[1][:55], pieces[2]]), alone[0])
    assert torch.equal(pieces[3], alone[1])


def test_numbers_that_are_none_stay_with_their_row(tmp_path: Path) -> None:
    network = tower(tmp_path, num_experts=20, top_k=3)
    with torch.inference_mode():
        embedded = network.embedding(torch.tensor(some_ids(20)), torch.arange(20))
    x = embedded.clone()
    whole = made(network)
    clean = whole.encode_embedded(x, [8, 12])
    x[:8] = float("nan")
    found = whole.encode_embedded(x, [8, 12])
    assert found[:8].isnan().all()
    assert torch.equal(found[8:], clean[8:])


def test_adapters_of_other_linears_stand_beside_experts(tmp_path: Path) -> None:
    model, merged = (family("qwen3-moe", tmp_path / name) for name in ("base", "merged"))
    executor = native(model)
    factors = some_factors(executor, 1, 4)
    assert factors.keys() == {"head.linear"} | {
        f"stack.blocks.{layer}.mixer.inner.{name}" for layer in range(3) for name in ("qkv", "out")
    }
    for name, (down, up) in factors.items():
        weight = merged.network.get_submodule(name).weight
        assert isinstance(weight, torch.Tensor)
        weight.data += up @ down
    executor.put_adapter(1, factors)
    ids = some_ids(12, vocabulary=100)
    segments = [Segment([0], 0, 6, adapter=1), Segment([1], 0, 6)]
    found = executor.run(ids, segments, range(12)).clone()
    for number, one in enumerate((merged, model)):
        part = slice(6 * number, 6 * number + 6)
        expected = plain(one).run(ids[part], [Segment([0], 0, 6)], range(6))
        torch.testing.assert_close(found[part], expected, atol=2e-4, rtol=1e-4)


def test_a_layer_of_experts_is_these_operations(tmp_path: Path) -> None:
    network, kernels = tower(tmp_path, num_experts=4, top_k=2, shared_width=8, shared_gate=True), load_kernels()
    assert kernels is not None
    program = write_program(kernels, network)
    attention = "NORM PREPARE PRODUCT ROTATE STORE ATTEND PREPARE PRODUCT"
    experts = "NORM PRODUCT ROUTE SORT SPREAD EXPERTS GATE PREPARE EXPERTS"
    shared = "PREPARE PRODUCT GATE PREPARE PRODUCT WEIGH COMBINE ADD"
    layer = f"{attention} {experts} {shared}"
    assert " ".join(Code(op.code).name for op in program.ops) == f"{layer} {layer} GATHER NORM"
