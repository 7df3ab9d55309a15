"""A model packed for inference answers, and is saved, as the plain one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from danlu.core.errors import ModelError
from danlu.models.experts import ExpertsConfig
from danlu.models.grouped import PackedGroupedLinear
from danlu.models.linear import PackedLinear
from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel
from danlu.models.multiply import can_pack
from danlu.models.packed import pack_weights
from danlu.models.save import save_model
from danlu.train.lora import LoraConfig, add_lora

from .peer import save_llama, some_ids

pytestmark = pytest.mark.skipif(not can_pack(torch.zeros(1, 1)), reason="this CPU gains nothing from packing")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_it_says_the_same_and_is_saved_the_same(tmp_path: Path, precision: str, is_tied: bool) -> None:
    save_llama(tmp_path / "m", tie_word_embeddings=is_tied)
    plain, packed = (
        load_model(tmp_path / "m", precision=precision, is_packed=is_packed)  # type: ignore[arg-type]
        for is_packed in (False, True)
    )
    assert sum(isinstance(layer, PackedLinear) for layer in packed.network.modules()) == 2 * 4 + 1
    assert not any(isinstance(layer, nn.Linear) for layer in packed.network.modules())
    ids = torch.tensor([some_ids(30)])
    tolerance = 1e-4 if precision == "fp32" else 0.1
    torch.testing.assert_close(
        LoadedModel(packed).logits(ids), LoadedModel(plain).logits(ids), atol=tolerance, rtol=0.02
    )
    assert packed.num_parameters() == plain.num_parameters()
    save_model(plain, tmp_path / "plain")
    save_model(packed, tmp_path / "packed")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "packed"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_experts_are_packed_too() -> None:
    torch.manual_seed(0)
    experts = ExpertsConfig(num_experts=4, top_k=2, width=24).make(16).requires_grad_(False)
    for weight in experts.parameters():
        nn.init.normal_(weight, std=0.3)
    x = torch.randn(20, 16)
    nothing: object = None
    before = experts(x, nothing, nothing)
    pack_weights(experts)
    assert sum(isinstance(layer, PackedGroupedLinear) for layer in experts.modules()) == 2
    torch.testing.assert_close(experts(x, nothing, nothing), before, atol=1e-5, rtol=1e-4)


def test_a_packed_model_takes_no_adapter(tmp_path: Path) -> None:
    save_llama(tmp_path / "m")
    with pytest.raises(ModelError, match=r"No linear of this model takes an adapter\. Fine-tune plain weights, not a"):
        add_lora(load_model(tmp_path / "m", is_packed=True), LoraConfig())
