"""Adapters as they are served add what they add to the weights, and those that cannot be served are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from danlu.core.errors import ConfigError, DataError, ModelError
from danlu.models.adapters import read_adapter
from danlu.models.load import load_model
from danlu.train.adapter import save_adapter
from danlu.train.lora import LoraConfig, add_lora
from danlu.train.merge import merge_lora
from tests.models.case import save_peer
from tests.models.families import FAMILIES
from tests.models.peer import save_llama
from tests.train.adapters import with_adapter
from tests.train.chats import fresh


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_llama(folder)
    return folder


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    config = LoraConfig(rank=2)
    save_adapter(with_adapter(base, config), tmp_path / "adapter", config, base="some/model")
    return tmp_path / "adapter"


CONFIGS = {
    "all": LoraConfig(rank=3, alpha=7.0),
    "rslora": LoraConfig(rank=4, rslora=True),
    "part of a fused linear": LoraConfig(rank=2, targets=("q_proj", "v_proj", "up_proj")),
    "one block": LoraConfig(rank=2, layers=(1,)),
    "patterns": LoraConfig(rank=2, ranks={"k_proj": 5, "down": 1}, alphas={"layers.1.mlp.down_proj": 20.0}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_factors_are_what_merging_adds_to_the_weights(tmp_path: Path, base: Path, name: str) -> None:
    config = CONFIGS[name]
    trained = with_adapter(base, config)
    save_adapter(trained, tmp_path, config, base="some/model")
    merge_lora(trained)
    model = fresh(base)
    loaded = read_adapter(model, tmp_path)
    assert loaded.base == "some/model"
    assert loaded.rank == max(config.rank, *config.ranks.values(), 0)
    for ours, merged in trained.network.named_modules():
        if isinstance(merged, nn.Linear) and ".blocks." in f".{ours}":
            plain = model.network.get_submodule(ours).weight
            assert isinstance(plain, torch.Tensor)
            down, up = loaded.factors.get(ours, (torch.zeros(1, plain.shape[1]), torch.zeros(plain.shape[0], 1)))
            torch.testing.assert_close(plain + up @ down, merged.weight)
    assert loaded.size_bytes() == sum(4 * (down.numel() + up.numel()) for down, up in loaded.factors.values())


@pytest.mark.parametrize("options", [{"scheme": "int8"}, {"is_packed": True}, {"precision": "bf16"}])
def test_the_same_factors_fit_packed_and_8_bit_weights(base: Path, adapter: Path, options: dict[str, str]) -> None:
    plain, other = read_adapter(fresh(base), adapter), read_adapter(load_model(base, **options), adapter)  # pyright: ignore[reportArgumentType]
    assert plain.factors.keys() == other.factors.keys()
    assert all(torch.equal(plain.factors[name][0], other.factors[name][0]) for name in plain.factors)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoraConfig(rank=2, dora=True), r"It is a DoRA adapter.* cannot be served .* Merge it into the model\."),
        (
            LoraConfig(rank=2, train_also=("norm",)),
            r"It has \d weights trained in full \(base_model\.model\.",
        ),
        (LoraConfig(rank=9), r"has rank 9; at most 8 is served\. Raise max_adapter_rank\."),
    ],
)
def test_what_is_more_than_low_rank_sums_is_refused(
    tmp_path: Path, base: Path, config: LoraConfig, message: str
) -> None:
    save_adapter(with_adapter(base, config), tmp_path, config, base="x")
    with pytest.raises(ModelError, match=message):
        read_adapter(fresh(base), tmp_path, max_rank=8)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("mixtral", r"It adapts experts \(stack\.blocks\.0\.feedforward\.inner\."),
        ("t5", r"Adapters of encoder-decoders are not served beside their base\. Merge"),
    ],
)
def test_models_whose_adapters_are_more_than_that_are_refused(tmp_path: Path, family: str, message: str) -> None:
    save_peer(FAMILIES[family].make(), tmp_path / "base")
    config = LoraConfig(rank=2)
    model = load_model(tmp_path / "base", precision="fp32", with_tokenizer=False)
    add_lora(model, config)
    save_adapter(model, tmp_path / "adapter", config, base="x")
    with pytest.raises(ModelError, match=message):
        read_adapter(load_model(tmp_path / "base", precision="fp32", with_tokenizer=False), tmp_path / "adapter")


def _rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors")


K_PROJ = "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop(K_PROJ),
            r"1 missing \(base_model.*k_proj\.lora_A\.weight\)\. Was it trained on a",
        ),
        (lambda w: w.update({"base_model.model.x.lora_A.weight": torch.zeros(2, 2)}), r"1 not of this model \(base_mo"),
        (lambda w: w.update({K_PROJ: torch.zeros(2, 31)}), r"1 of another shape \(base_model.*k_proj"),
        (
            lambda w: w[K_PROJ].fill_(float("nan")),
            r"has numbers for stack\.blocks\.0\.mixer\.inner\.qkv that are not",
        ),
        (lambda w: w.update({K_PROJ: torch.zeros(2, 32, dtype=torch.int32)}), r"holds .*k_proj.* as I32\. Use F32"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    base: Path, adapter: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    _rewritten(adapter, change)
    with pytest.raises(ModelError, match=message):
        read_adapter(fresh(base), adapter)


def test_pickles_are_never_read(base: Path, adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors\. adapter_model\.bin is a pickle, which "):
        read_adapter(fresh(base), adapter)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds no JSON object"),
        ("{", "is not JSON"),
        ('{"r": "four", "lora_alpha": 1, "target_modules": ["q_proj"]}', "is damaged: "),
        ('{"r": 0, "lora_alpha": 1, "target_modules": ["q_proj"]}', "rank is 0"),
        ('{"r": 2, "lora_alpha": 1, "target_modules": 7}', "is damaged: "),
    ],
)
def test_a_config_that_is_none_is_refused(base: Path, adapter: Path, text: str, message: str) -> None:
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises((ModelError, ConfigError, DataError), match=message):
        read_adapter(fresh(base), adapter)


def test_huge_ranks_are_refused_before_anything_is_read(base: Path, adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": 10**9}))
    with pytest.raises(ModelError, match="has rank 1000000000; at most 256 is served"):
        read_adapter(fresh(base), adapter)
