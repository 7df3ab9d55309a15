"""Adapters on experts: each expert's is LoRA on that expert alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from danlu.models.grouped import GroupedLinear, group_items
from danlu.models.load import load_model
from danlu.train.adapter import load_adapter, lora_state, save_adapter
from danlu.train.grouped_lora import LoraGroupedLinear
from danlu.train.lora import LoraConfig, LoraLinear, LoraPart, add_lora
from tests.models.case import save_peer
from tests.models.cases.experts import CASES

CONFIG = LoraConfig(rank=2, alpha=6.0)


def _parts(chosen: tuple[bool, ...]) -> list[LoraPart]:
    return [CONFIG.part(5, "gate_up", "w1") if is_chosen else LoraPart(5) for is_chosen in chosen]


def _layer(chosen: tuple[bool, ...]) -> LoraGroupedLinear:
    torch.manual_seed(0)
    layer = LoraGroupedLinear(GroupedLinear(3, 8, (5, 5)).requires_grad_(False), _parts(chosen))
    for b in layer.b:
        nn.init.normal_(b)
    return layer


@pytest.mark.parametrize("chosen", [(True, True), (True, False), (False, True)])
def test_each_group_answers_as_a_linear_with_an_adapter_of_its_own(chosen: tuple[bool, ...]) -> None:
    layer = _layer(chosen)
    groups = group_items(torch.tensor([2, 0, 2, 2, 0]), 3)
    x = torch.randn(5, 8)
    for group, row, y in zip(groups.owner.tolist(), x, layer(x, groups), strict=True):
        plain = nn.Linear(8, 10, bias=False)
        plain.weight = nn.Parameter(layer.base.weight[group])
        single = LoraLinear(plain, _parts(chosen))
        with torch.no_grad():
            single.a.copy_(layer.a[group])
            for mine, other in zip(single.b, layer.b, strict=True):
                mine.copy_(other[group])
        torch.testing.assert_close(y, single(row.unsqueeze(0))[0])
        torch.testing.assert_close(layer.delta()[group], single.delta())


def test_gradients_reach_the_adapters_of_the_groups_that_had_rows() -> None:
    layer = _layer((True, True))
    layer(torch.randn(4, 8), group_items(torch.tensor([0, 0, 2, 0]), 3)).sum().backward()
    assert layer.base.weight.grad is None
    for parameter in (layer.a, *layer.b):
        assert parameter.grad is not None
        assert parameter.grad.flatten(1).any(dim=1).tolist() == [True, False, True]


def test_files_name_each_expert_and_load_again(tmp_path: Path) -> None:
    case = CASES["mixtral"]
    folder = save_peer(case.make(), tmp_path / "base")
    model = load_model(folder, precision="fp32")
    config = LoraConfig(rank=2, targets=("w1", "w2", "q_proj"))
    for parameter in add_lora(model, config):
        nn.init.normal_(parameter)
    state = lora_state(model)
    assert state["base_model.model.model.layers.1.block_sparse_moe.experts.3.w2.lora_A.weight"].shape == (2, 24)
    assert not any(".w3." in name for name in state)
    save_adapter(model, tmp_path / "adapter", config, base="base")
    again = load_model(folder, precision="fp32")
    load_adapter(again, tmp_path / "adapter")
    rows = case.compare.rows(case)
    for mine, other in zip(case.compare.ours(model, rows), case.compare.ours(again, rows), strict=True):
        assert torch.equal(mine, other)
