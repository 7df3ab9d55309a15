from pathlib import Path

import pytest
import torch
from torch import nn

from danlu.core.errors import TrainError
from danlu.models.load import load_model
from danlu.train.lora import LoraConfig, add_lora
from danlu.train.weights import Weights, trainable


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def test_a_network_in_fp32_is_its_own_master() -> None:
    net = small_net()
    weights = Weights(net, trainable(net), torch.float32)
    assert list(weights.masters) == [name for name, _ in net.named_parameters()]
    assert all(weights.masters[name] is parameter for name, parameter in net.named_parameters())


def test_a_bf16_network_has_fp32_masters_that_add_up_its_gradients() -> None:
    net = small_net()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    weights = Weights(net, trainable(net), torch.bfloat16)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.bfloat16}
    for name, master in weights.masters.items():
        torch.testing.assert_close(master.detach(), before[name], atol=0, rtol=0)
    x = torch.randn(5, 6, dtype=torch.bfloat16)
    net(x).sum().backward()
    once = {name: master.grad.clone() for name, master in weights.masters.items() if master.grad is not None}
    net(x).sum().backward()
    assert once.keys() == weights.masters.keys()
    for name, master in weights.masters.items():
        assert master.grad is not None
        assert master.grad.dtype == torch.float32
        torch.testing.assert_close(master.grad, 2 * once[name], atol=0, rtol=0)
    assert all(parameter.grad is None for parameter in net.parameters())
    weights.scale_gradients(0.5)
    torch.testing.assert_close(weights.masters["0.weight"].grad, once["0.weight"], atol=0, rtol=0)
    weights.clear_gradients()
    assert all(master.grad is None for master in weights.masters.values())


def test_updates_too_small_for_bf16_are_not_lost() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    weights = Weights(net, trainable(net), torch.bfloat16)
    with torch.no_grad():
        for _ in range(64):
            weights.masters["weight"] += 1e-4  # a bf16 step near 1 is 8e-3
            weights.round()
    assert net.weight.item() == pytest.approx(1.0064, abs=4e-3)
    assert net.weight.item() > 1.0
    weights.put_back()
    assert net.weight.item() == pytest.approx(1.0064, abs=1e-5)


def test_frozen_weights_come_back_bit_for_bit() -> None:
    net = small_net()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    net[0].requires_grad_(False)
    weights = Weights(net, trainable(net), torch.bfloat16)
    assert list(weights.masters) == ["2.weight", "2.bias"]
    assert net[0].weight.dtype == torch.bfloat16
    weights.put_back()
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_tied_weights_stay_tied_and_have_one_master() -> None:
    net = nn.ModuleDict({"table": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    net["head"].weight = net["table"].weight
    weights = Weights(net, trainable(net), torch.bfloat16)
    assert list(weights.masters) == ["table.weight"]
    assert net["head"].weight is net["table"].weight
    weights.put_back()
    assert net["head"].weight is net["table"].weight
    assert net["head"].weight.dtype == torch.float32


def test_adapters_stay_fp32_in_a_bf16_network(tiny_folder: Path) -> None:
    model = load_model(tiny_folder, precision="bf16")
    add_lora(model, LoraConfig(rank=2))
    parameters = trainable(model.network)
    weights = Weights(model.network, parameters, torch.bfloat16)
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}
    assert all(weights.masters[name] is parameter for name, parameter in parameters.items())


def test_state_goes_back_in_and_another_networks_is_refused() -> None:
    net = small_net()
    weights = Weights(net, trainable(net), torch.bfloat16)
    kept = {name: tensor.clone() for name, tensor in weights.state().items()}
    with weights.replaced({name: torch.zeros_like(tensor) for name, tensor in kept.items()}):
        assert not any(parameter.any() for parameter in net.parameters())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights.state().items())
    del kept["0.bias"]
    with pytest.raises(
        TrainError, match=r"another network or method: 1 weights differ, 0\.bias first\. Remove the work"
    ):
        weights.load_state(kept)


def test_what_batch_norms_measure_is_part_of_the_state() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    weights = Weights(net, trainable(net), torch.float32)
    net(torch.randn(4, 1, 3, 3))
    assert {"1.running_mean", "1.running_var", "1.num_batches_tracked"} <= weights.state().keys()
    assert int(weights.state()["1.num_batches_tracked"]) == 1
