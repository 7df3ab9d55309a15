"""Recorded routing and its losses against transformers' and against arithmetic."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.models.switch_transformers import modeling_switch_transformers as switch

from danlu.models.attend import PackedAttend
from danlu.models.attention import Places
from danlu.models.experts import Experts, ExpertsConfig
from danlu.models.routing import load_balancing_loss, record_routing, router_z_loss, utilisation

NOWHERE, NO_ROWS = cast(Places, None), cast(PackedAttend, None)


def _logits(layers: int = 3, tokens: int = 50, experts: int = 8) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(tokens, experts, requires_grad=True) for _ in range(layers)]


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_balancing_loss_is_the_reference_of_each_layer(top_k: int) -> None:
    logits = _logits()
    theirs = [cast(Tensor, load_balancing_loss_func((layer,), 8, top_k)) for layer in logits]
    torch.testing.assert_close(load_balancing_loss(logits, top_k), torch.stack(theirs).mean())
    pooled = cast(Tensor, load_balancing_loss_func(cast(tuple[Tensor], tuple(logits)), 8, top_k))
    torch.testing.assert_close(load_balancing_loss([torch.cat(logits)], top_k), pooled)


def test_with_one_expert_a_token_it_is_the_loss_of_switch_transformers() -> None:
    (logits,) = _logits(layers=1)
    probabilities = torch.softmax(logits, dim=-1)
    theirs = switch.load_balancing_loss_func(probabilities.unsqueeze(0), probabilities.argmax(-1).unsqueeze(0))
    torch.testing.assert_close(load_balancing_loss([logits], 1), cast(Tensor, theirs))


@pytest.mark.parametrize("top_k", [1, 3])
def test_the_balancing_loss_is_top_k_in_balance_and_grows_to_the_number_of_experts(top_k: int) -> None:
    even = (
        torch.eye(8).repeat(4, 1)
        + torch.eye(8).roll(1, 0).repeat(4, 1) * 0.9
        + torch.eye(8).roll(2, 0).repeat(4, 1) * 0.8
    )
    torch.testing.assert_close(load_balancing_loss([even], top_k), torch.tensor(float(top_k)))
    lopsided = torch.zeros(32, 8)
    lopsided[:, :top_k] = 50.0
    torch.testing.assert_close(load_balancing_loss([lopsided], top_k), torch.tensor(8.0))


def test_the_z_loss_is_the_mean_square_of_the_log_of_the_sum() -> None:
    logits = _logits()
    theirs = [cast(Tensor, switch.router_z_loss_func(layer.unsqueeze(0))) for layer in logits]
    torch.testing.assert_close(router_z_loss(logits), torch.stack(theirs).mean())
    torch.testing.assert_close(router_z_loss([torch.zeros(5, 4)]), torch.tensor(4.0).log().square())


def test_utilisation_is_the_share_of_choices() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 1.0, 2.0]])
    (shares,) = utilisation([logits], 2)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.25, 0.25]))


def _network() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(ExpertsConfig(num_experts=4, top_k=2, width=8).make(6) for _ in range(2))


def test_logits_are_recorded_layer_by_layer_and_only_inside() -> None:
    network, x = _network(), torch.randn(9, 6)
    with record_routing(network) as logits:
        for layer in network:
            layer(x, NOWHERE, NO_ROWS)
    network[0](x, NOWHERE, NO_ROWS)
    assert [tuple(one.shape) for one in logits] == [(9, 4), (9, 4)]
    torch.testing.assert_close(logits[1], cast(Experts, network[1]).router(x))


def test_training_on_the_losses_brings_experts_into_balance() -> None:
    network, x = _network(), torch.randn(400, 6)
    x[:, 0] = 1.0
    layer = cast(Experts, network[0])
    with torch.no_grad():
        layer.router.weight[0, 0] += 3.0  # every token wants the first expert
    optimiser = torch.optim.Adam(layer.router.parameters(), lr=0.02)

    def measure() -> tuple[Tensor, float]:
        with record_routing(network) as logits:
            layer(x, NOWHERE, NO_ROWS)
        return load_balancing_loss(logits, 2) + 0.01 * router_z_loss(logits), float(utilisation(logits, 2)[0].max())

    before = measure()[1]
    for _ in range(40):
        optimiser.zero_grad()
        measure()[0].backward()
        optimiser.step()
    assert before > 0.4 > measure()[1]
