"""What the kernels do not know of a network is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from danlu.models.experts import Experts
from danlu.models.load import load_model
from danlu.models.native.unsupported import why_not
from tests.models.native.cases import family
from tests.models.peer import save_llama

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_layer_of_another_kind_is_named(tmp_path: Path) -> None:
    network = family("llama", tmp_path).network
    block = network.stack.blocks[1]
    block.feedforward.inner.down = nn.Bilinear(2, 2, 2)  # pyright: ignore
    assert why_not(network) == "layer 1: a layer is Bilinear"


def test_weights_of_another_type_are_named(tmp_path: Path) -> None:
    network = family("llama", tmp_path).network.half()
    assert why_not(network) == "layer 0: weights are torch.float16"


def test_packed_weights_are_known(tmp_path: Path) -> None:
    save_llama(tmp_path)
    assert why_not(load_model(tmp_path, precision="fp32", is_packed=True).network) is None


def experts_of(network: nn.Module) -> Iterator[Experts]:
    """Its layers of experts, the first one first."""
    return (module for module in network.modules() if isinstance(module, Experts))


def test_experts_of_another_kind_are_named(tmp_path: Path) -> None:
    network = family("olmoe", tmp_path).network
    inner = list(experts_of(network))[1]
    inner.down = nn.Bilinear(2, 2, 2)  # pyright: ignore
    assert why_not(network) == "layer 1: a layer is Bilinear"


def test_more_experts_than_a_phase_has_tasks_are_named(tmp_path: Path) -> None:
    network = family("olmoe", tmp_path).network
    inner = next(experts_of(network))
    inner.config = dataclasses.replace(inner.config, num_experts=5000)
    assert why_not(network) == "layer 0: it has 5000 experts"
