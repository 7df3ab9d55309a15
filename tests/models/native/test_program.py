"""What a network becomes, and the tables that kernels read instead of formulas."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from danlu.models.load import load_model
from danlu.models.native.kernels import load_kernels
from danlu.models.native.program import Angles, Distances, Unsupported, why_not, write_program
from danlu.models.native.structs import Code
from danlu.models.positions import RelativeBias, RelativeConfig, Rotary, RotaryConfig
from tests.models.native.cases import family, needs_kernels
from tests.models.peer import save_llama


@needs_kernels
def test_a_llama_layer_is_these_operations(tmp_path: Path) -> None:
    network = family("llama", tmp_path).network
    kernels = load_kernels()
    assert kernels is not None
    program = write_program(kernels, network, network.head)
    layer = "NORM PREPARE PRODUCT ROTATE STORE ATTEND PREPARE PRODUCT NORM PREPARE PRODUCT GATE PREPARE PRODUCT"
    end = "GATHER NORM PREPARE PRODUCT"
    assert " ".join(Code(op.code).name for op in program.ops) == f"{layer} {layer} {end}"
    assert program.has_head
    assert [Code(op.code).name for op in program.ops[: program.num_body]][-1] == "NORM"
    assert program.products[:4] == [
        f"stack.blocks.0.{name}" for name in
        ("mixer.inner.qkv", "mixer.inner.out", "feedforward.inner.gate_up", "feedforward.inner.down")
    ]  # fmt: skip
    assert program.products[-1] == "head.linear"
    assert program.size_bytes() >= sum(p.nbytes for p in network.parameters() if p.dim() == 2) // 2


def test_a_layer_of_another_kind_is_named(tmp_path: Path) -> None:
    network = family("llama", tmp_path).network
    block = network.stack.blocks[1]
    block.feedforward.inner.down = nn.Bilinear(2, 2, 2)  # pyright: ignore
    assert why_not(network) == "layer 1: a layer is Bilinear"


def test_weights_of_another_type_are_named(tmp_path: Path) -> None:
    network = family("llama", tmp_path).network.half()
    assert why_not(network) == "layer 0: weights are torch.float16"


@needs_kernels
def test_a_head_that_is_not_known_is_named(tmp_path: Path) -> None:
    network = family("bert", tmp_path).network
    kernels = load_kernels()
    assert kernels is not None
    assert why_not(network) is None
    with pytest.raises(Unsupported, match="its head has a transform"):
        write_program(kernels, network, network.head)
    assert why_not(network, nn.Identity()) == "its head is Identity"


def test_packed_weights_are_known(tmp_path: Path) -> None:
    save_llama(tmp_path)
    assert why_not(load_model(tmp_path, precision="fp32", is_packed=True).network) is None


def test_angles_are_those_of_rotary_positions_however_far_they_reach() -> None:
    kind = RotaryConfig(width=8)
    angles = Angles([kind])
    for count in (3, 700):
        angles.reach(count)
        table = angles.tables[0]
        assert table.shape[0] >= count
        cos, sin = Rotary(kind)(torch.tensor([count - 1]), torch.float32)
        torch.testing.assert_close(table[count - 1], torch.cat([cos[0, 0, :4], sin[0, 0, 4:]]))


def test_distances_are_those_of_the_relative_bias() -> None:
    bias = RelativeBias(RelativeConfig(num_buckets=8, max_distance=16), 3)
    nn.init.normal_(bias.weight)
    distances = Distances(bias)
    distances.reach(600)
    assert distances.table is not None
    expected = bias(torch.tensor([[-599, 0, 7]]))[:, 0]
    found = distances.table[:, torch.tensor([-599, 0, 7]) + distances.zero]
    assert torch.equal(found, expected)
    nothing = Distances(None)
    nothing.reach(9)
    assert nothing.table is None
