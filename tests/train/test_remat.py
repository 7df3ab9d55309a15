"""Blocks that forget: the same gradients from less memory, whatever mixes the tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from danlu.core import plugins
from danlu.models.block import Block
from danlu.models.model import Model
from danlu.models.network import Network
from danlu.train.lora import LoraConfig, add_lora
from danlu.train.remat import RematMode, checkpoint_blocks
from tests.models.cases.recurrent import CASES
from tests.train.rank_work import MODELS, loss_of

THEIRS: dict[str, dict[str, Any]] = {
    **{name: MODELS[name] for name in ("decoder", "experts", "seq2seq")},
    **{name: {"model_type": name.replace("-", "_"), **CASES[name].numbers} for name in ("mamba2", "qwen3-next")},
}


def make(name: str) -> Model:
    theirs = CASES[name].config(**CASES[name].numbers).to_dict() if name in CASES else THEIRS[name]
    architecture = plugins.load("models.archs", theirs["model_type"])
    torch.manual_seed(0)
    model = Model(architecture.read_config(theirs).make(), theirs, architecture, dtype=torch.float32)
    for parameter in model.network.train().parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def gradients(network: Network) -> dict[str, Tensor]:
    """Of every weight that trains, for one row."""
    network.zero_grad()
    torch.manual_seed(1)
    loss_of(network, torch.randint(2, 50, (21,)), is_supervised=True).backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mode", ["half", "full"])
@pytest.mark.parametrize("with_lora", [False, True])
@pytest.mark.parametrize("name", THEIRS)
def test_gradients_are_the_same(name: str, with_lora: bool, mode: RematMode):
    model = make(name)
    if with_lora:
        for parameter in add_lora(model, LoraConfig(rank=2)):
            nn.init.normal_(parameter, std=0.2)
    expected = gradients(model.network)
    assert expected.keys() == {name for name, p in model.network.named_parameters() if p.requires_grad}
    num_blocks = sum(isinstance(module, Block) for module in model.network.modules())
    assert checkpoint_blocks(model.network, mode) == (num_blocks if mode == "full" else (num_blocks + 1) // 2)
    found = gradients(model.network)
    assert found.keys() == expected.keys()
    for parameter, gradient in found.items():
        torch.testing.assert_close(gradient, expected[parameter], msg=parameter)


def test_dropout_is_drawn_again_alike():
    theirs = {**MODELS["seq2seq"], "dropout_rate": 0.3}
    torch.manual_seed(0)
    network = plugins.load("models.archs", "t5").read_config(theirs).make().train()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    expected = gradients(network)
    checkpoint_blocks(network, "full")
    for name, gradient in gradients(network).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def kept_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes that the forward pass keeps for going backward, each storage once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(kept.values())


def test_less_is_kept_and_none_takes_it_back():
    theirs = {**MODELS["decoder"], "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 6}
    network = plugins.load("models.archs", "llama").read_config(theirs).make().train()
    weights = sum(parameter.nbytes for parameter in network.parameters())
    kept: dict[RematMode, int] = {}
    modes: tuple[RematMode, ...] = ("none", "half", "full")
    for mode in modes:
        checkpoint_blocks(network, mode)
        kept[mode] = kept_bytes(lambda: network.rows(torch.randint(50, (60,)), [60])) - weights
    assert kept["full"] < 0.2 * kept["none"]
    assert kept["half"] < 0.65 * kept["none"]
    assert checkpoint_blocks(network, "none") == 0
    assert kept_bytes(lambda: network.rows(torch.randint(50, (60,)), [60])) - weights == kept["none"]


def test_a_network_without_blocks_is_left_alone():
    assert checkpoint_blocks(nn.Linear(2, 2), "full") == 0
