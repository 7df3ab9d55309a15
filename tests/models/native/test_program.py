"""What a network becomes, and the tables that kernels read instead of formulas."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from danlu.models.native.kernels import load_kernels
from danlu.models.native.program import write_program
from danlu.models.native.structs import Code
from danlu.models.native.unsupported import Unsupported, why_not
from tests.models.native.cases import family, needs_kernels


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


@needs_kernels
def test_a_head_that_is_not_known_is_named(tmp_path: Path) -> None:
    network = family("bert", tmp_path).network
    kernels = load_kernels()
    assert kernels is not None
    assert why_not(network) is None
    with pytest.raises(Unsupported, match="its head has a transform"):
        write_program(kernels, network, network.head)
    assert why_not(network, nn.Identity()) == "its head is Identity"
