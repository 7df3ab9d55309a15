"""Merging: added in fp32, rounded once, and nothing collapses when the merged model is loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from danlu.core.errors import ModelError
from danlu.models.load import load_model
from danlu.models.save import save_model
from danlu.train.adapter import load_adapter, save_adapter
from danlu.train.lora import LoraConfig, add_lora, lora_layers
from danlu.train.merge import merge_lora, round_weights

from ..models.peer import logits_of, save_llama, some_ids
from .adapters import our_logits, peer_model, with_adapter
from .chats import fresh

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers


@pytest.fixture(scope="module")
def peer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peer")
    save_llama(folder)
    return folder


@pytest.mark.parametrize("changes", [{}, {"dora": True}, {"rslora": True, "targets": ("v_proj", "up_proj")}])
def test_merging_changes_no_logits_and_says_how_much_weights_moved(changes: dict[str, Any], peer_folder: Path) -> None:
    model = with_adapter(peer_folder, LoraConfig(rank=3, **changes))
    ids = some_ids(30)
    before = our_logits(model, ids)
    largest = max(float(layer.delta().detach().abs().max()) for layer in lora_layers(model).values())
    assert merge_lora(model).largest_change == pytest.approx(largest)
    assert not lora_layers(model)
    torch.testing.assert_close(our_logits(model, ids), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dora", [False, True])
def test_a_merged_model_is_what_peft_merges_to(dora: bool, tmp_path: Path, peer_folder: Path) -> None:
    config = LoraConfig(rank=3, dora=dora)
    model = with_adapter(peer_folder, config)
    save_adapter(model, tmp_path / "adapter", config, base="x")
    merge_lora(model)
    save_model(model, tmp_path / "merged")
    theirs = peft.PeftModel.from_pretrained(peer_model(peer_folder), tmp_path / "adapter").merge_and_unload()
    again = peer_model(tmp_path / "merged")
    for (name, ours), other in zip(again.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, other, atol=1e-6, rtol=1e-5, msg=name)


def test_merging_into_bf16_adds_in_fp32_and_rounds_once(peer_folder: Path) -> None:
    """Rounded before it is added, a small change is lost."""
    model = load_model(peer_folder, precision="bf16")
    torch.manual_seed(1)
    for parameter in add_lora(model, LoraConfig(rank=2)):
        torch.nn.init.normal_(parameter, std=0.03)
    expected = {
        name: (layer.base.weight.float() + layer.delta()).bfloat16() for name, layer in lora_layers(model).items()
    }
    exact = {name: layer.base.weight.float() + layer.delta() for name, layer in lora_layers(model).items()}
    merged = merge_lora(model)
    for name, weight in expected.items():
        assert torch.equal(model.network.get_submodule(name).weight, weight)
    lost = max(float((exact[name] - weight.float()).detach().abs().max()) for name, weight in expected.items())
    assert merged.largest_rounding == pytest.approx(lost)
    assert 0 < lost < merged.largest_change


def test_in_fp32_nothing_is_rounded(peer_folder: Path) -> None:
    assert merge_lora(with_adapter(peer_folder, LoraConfig(rank=2))).largest_rounding == 0.0


def test_bringing_a_model_to_bf16_says_what_it_cost(tmp_path: Path, peer_folder: Path) -> None:
    model = with_adapter(peer_folder, LoraConfig(rank=2))
    merge_lora(model)
    exact = {name: parameter.clone() for name, parameter in model.network.named_parameters()}
    lost = round_weights(model, "bf16")
    assert lost == max(float((exact[n] - p.float()).abs().max()) for n, p in model.network.named_parameters())
    assert model.precision == "bf16"
    save_model(model, tmp_path)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    ids = some_ids(9)
    assert torch.equal(our_logits(load_model(tmp_path, precision="bf16"), ids), our_logits(model, ids))


def test_an_adapter_on_8_bits_is_not_merged_into_them(peer_folder: Path) -> None:
    model = load_model(peer_folder, scheme="int8")
    add_lora(model, LoraConfig(rank=2))
    with pytest.raises(ModelError, match=r"on 8-bit weights, which would round it away\. Merge it into the plain"):
        merge_lora(model)
    assert lora_layers(model), "nothing was merged before it was refused"


@pytest.mark.parametrize("also", ["embed_tokens", "lm_head", "head"])
def test_a_tied_table_that_trained_is_still_one_after_merging(also: str, tmp_path: Path, peer_folder: Path) -> None:
    config = LoraConfig(rank=2, train_also=(also,))
    model = with_adapter(peer_folder, config)
    ids = some_ids(20)
    before = our_logits(model, ids)
    assert (before - our_logits(fresh(peer_folder), ids)).abs().max() > 0.1
    save_adapter(model, tmp_path / "adapter", config, base="x")
    merge_lora(model)
    save_model(model, tmp_path / "merged")
    again = fresh(tmp_path / "merged")
    assert again.config.is_tied
    torch.testing.assert_close(our_logits(again, ids), before, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits_of(peer_model(tmp_path / "merged"), ids), before, atol=1e-4, rtol=1e-4)
    second = fresh(peer_folder)
    load_adapter(second, tmp_path / "adapter")
    merge_lora(second)
    torch.testing.assert_close(our_logits(second, ids), before, atol=1e-4, rtol=1e-4)
