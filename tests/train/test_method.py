"""What trains: all of a model, parts of it, or an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from danlu.core.config import from_mapping, to_mapping
from danlu.core.errors import ConfigError, ModelError
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.text.chat import RenderedChat
from danlu.train.lora import LoraConfig, lora_layers
from danlu.train.loss import collate, summed_loss
from danlu.train.method import MethodConfig, PartsConfig, prepare, rates, save_trained
from danlu.train.run import RunConfig

from ..models.case import save_peer
from ..models.families import FAMILIES
from ..models.peer import save_llama, some_ids
from .adapters import our_logits
from .chats import fresh

LAST = {"mixer.inner.qkv", "mixer.inner.out", "mixer.input_norm", "feedforward.inner.gate_up", "feedforward.inner.down",
        "feedforward.input_norm"}  # fmt: skip


@pytest.fixture(scope="module")
def peer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peer")
    save_llama(folder)
    return folder


def base_of(name: str, tmp_path: Path) -> Model:
    return fresh(save_peer(FAMILIES[name].make(), tmp_path / name))


def parts(**changes: Any) -> MethodConfig:
    return MethodConfig(parts=PartsConfig(**changes))


# ---- all of it, or parts ---------------------------------------------------------------------------------------------


def test_everything_trains_and_a_tied_table_is_one(peer_folder: Path) -> None:
    model = fresh(peer_folder)
    found = prepare(model, MethodConfig())
    assert list(found) == [name for name, _ in model.network.named_parameters()]
    assert sum(parameter.numel() for parameter in found.values()) == model.num_parameters()
    assert "head.linear.weight" not in found
    assert all(parameter.requires_grad for parameter in model.network.parameters())


def test_the_last_blocks_train_with_what_stands_behind_them(peer_folder: Path, tmp_path: Path) -> None:
    model = fresh(peer_folder)
    found = prepare(model, parts(last_blocks=1))
    assert set(found) == {*(f"stack.blocks.1.{name}.weight" for name in LAST), "stack.norm.weight"}
    assert {name for name, p in model.network.named_parameters() if p.requires_grad} == set(found)
    untied = prepare(base_of("qwen3", tmp_path), parts(last_blocks=1))
    assert {"head.linear.weight", "stack.norm.weight"} < set(untied)
    assert "embedding.tokens.weight" not in untied
    both = set(prepare(base_of("t5", tmp_path), parts(last_blocks=1)))
    assert {"encoder.stack.blocks.1.mixer.inner.qkv.weight", "stack.blocks.2.mixer.inner.qkv.weight"} < both
    assert "stack.blocks.1.mixer.inner.qkv.weight" not in both


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train": ("head",)}, {"head.transform.dense.weight", "head.transform.dense.bias", "head.linear.weight",
                                "head.linear.bias"}),
        ({"train": ("classifier",)}, {"head.linear.weight", "head.linear.bias"}),
        ({"train": ("bert.pooler", "classifier"), "freeze": ("bias",)},
         {"head.transform.dense.weight", "head.linear.weight"}),
        ({"train": ("blocks.1.mixer",), "freeze": ("*norm", "bias")},
         {"stack.blocks.1.mixer.inner.qkv.weight", "stack.blocks.1.mixer.inner.out.weight"}),
        ({"train": ("layer.0.attention.self.query", "layer.0.attention.self.key", "layer.0.attention.self.value")},
         {"stack.blocks.0.mixer.inner.qkv.weight", "stack.blocks.0.mixer.inner.qkv.bias"}),
    ],
)  # fmt: skip
def test_parts_are_named_as_we_do_or_as_the_checkpoint_does(
    changes: dict[str, Any], expected: set[str], tmp_path: Path
) -> None:
    assert set(prepare(base_of("bert-classify", tmp_path), parts(**changes))) == expected


def test_what_is_frozen_is_all_that_does_not_train(tmp_path: Path) -> None:
    model = base_of("bert-classify", tmp_path)
    found = prepare(model, parts(freeze=("embedding", "blocks.0")))
    frozen = {name for name, _ in model.network.named_parameters()} - found.keys()
    assert {name.split(".")[0] for name in frozen} == {"embedding", "stack"}
    assert all(name.startswith(("embedding.", "stack.blocks.0.")) for name in frozen)


def test_a_tied_head_is_its_table(peer_folder: Path) -> None:
    for name in ("head", "lm_head", "embed_tokens", "embedding"):
        assert list(prepare(fresh(peer_folder), parts(train=(name,)))) == ["embedding.tokens.weight"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": ("haed",)}, r"train has 'haed', which means no weight of this model\. Did you mean 'head'\?"),
        ({"freeze": ("layers",), "train": ("norm",)}, None),
        ({"train": ("norm",), "freeze": ("norm",)}, r"parts leaves nothing to train\. Take names out of freeze\."),
        ({"last_blocks": 3}, r"last_blocks is 3; the model has 2\. Use fewer\."),
        ({"train": ("k_proj",)}, r"train means model\S*k_proj\.weight, which is one matrix with model\S*q_proj"),
    ],
)
def test_parts_that_cannot_be_followed_are_refused(
    changes: dict[str, Any], message: str | None, peer_folder: Path
) -> None:
    if message is None:
        assert set(prepare(fresh(peer_folder), parts(**changes))) == {"stack.norm.weight"}
        return
    with pytest.raises(ConfigError, match=message):
        prepare(fresh(peer_folder), parts(**changes))


# ---- adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("scheme", [None, "int8"])
def test_every_part_of_an_adapter_moves_in_two_steps(
    scheme: str | None, is_recomputed: bool, peer_folder: Path
) -> None:
    """Also where activations are thrown away and computed again: a reentrant checkpoint would lose the gradients."""
    model = load_model(peer_folder, precision="fp32", scheme=scheme)
    found = prepare(model, MethodConfig(lora=LoraConfig(rank=2, dora=True)))
    assert all(".a" in name or ".b." in name or ".m." in name for name in found)
    if is_recomputed:
        for block in model.network.stack.blocks:
            own = block.forward
            block.forward = lambda *inputs, own=own: checkpoint(own, *inputs, use_reentrant=False)
    before = {name: parameter.detach().clone() for name, parameter in found.items()}
    batch = collate([RenderedChat(some_ids(30), [True] * 30)])
    optimizer = torch.optim.SGD(found.values(), lr=0.01)
    for _ in range(2):  # A moves once B has
        optimizer.zero_grad()
        summed_loss(model.network, batch).backward()
        optimizer.step()
    assert all((parameter - before[name]).abs().max() > 0 for name, parameter in found.items())
    assert {name for name, parameter in model.network.named_parameters() if parameter.grad is not None} == set(found)


def test_what_trains_beside_an_adapter_goes_by_its_own_name(tmp_path: Path) -> None:
    model = base_of("bert-classify", tmp_path)
    found = prepare(model, MethodConfig(lora=LoraConfig(rank=2, targets=("query",), train_also=("classifier",))))
    adapters = {f"stack.blocks.{n}.mixer.inner.qkv.{x}" for n in (0, 1) for x in ("a", "b.0")}
    assert set(found) == adapters | {"head.linear.weight", "head.linear.bias"}


def test_lora_plus_lets_b_learn_faster(peer_folder: Path) -> None:
    model = fresh(peer_folder)
    config = MethodConfig(lora=LoraConfig(rank=2, plus_ratio=16.0, targets=("q_proj", "v_proj")))
    found = prepare(model, config)
    factors = rates(model.network, config)
    assert factors == {name: 16.0 for name in found if ".b." in name}
    assert len(factors) == 4
    assert rates(model.network, MethodConfig()) == {}
    assert rates(model.network, MethodConfig(lora=LoraConfig())) == {}


# ---- configs and files -----------------------------------------------------------------------------------------------


class Stage(RunConfig, MethodConfig):
    """A stage's config inherits the method's."""


def test_a_recipe_says_it_in_one_key() -> None:
    lora = from_mapping(MethodConfig, {"lora": {"rank": 8, "dora": True, "ranks": {"q_proj": 2}}}, "train")
    assert lora == MethodConfig(lora=LoraConfig(rank=8, dora=True, ranks={"q_proj": 2}))
    assert from_mapping(MethodConfig, {"parts": {"last_blocks": 2}}, "train") == parts(last_blocks=2)
    assert from_mapping(MethodConfig, {}, "train") == MethodConfig()
    assert from_mapping(MethodConfig, to_mapping(lora), "train") == lora


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"lora": {}, "parts": {"last_blocks": 1}},
            r"train: lora and parts are both given\. Give one; lora\.train_also",
        ),
        ({"lora": {"rnak": 2}}, r"Unknown key 'train\.lora\.rnak'\. Did you mean 'rank'\?"),
        ({"parts": {}}, r"parts says nothing\. Give train, last_blocks or freeze"),
        ({"parts": {"last_blocks": 0}}, r"last_blocks is 0\. Use 1 or more"),
    ],
)
def test_methods_that_contradict_themselves_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(MethodConfig, values, "train")


def test_a_config_that_inherits_does_not_get_around_it() -> None:
    with pytest.raises(ConfigError, match="lora and parts are both given"):
        Stage(lora=LoraConfig(), parts=PartsConfig(last_blocks=1))


def test_weights_that_cannot_train_are_refused(peer_folder: Path) -> None:
    int8 = load_model(peer_folder, scheme="int8")
    for config in (MethodConfig(), parts(last_blocks=1)):
        with pytest.raises(ModelError, match=r"quantised \(int8\) and cannot train\. Train a LoRA adapter on it"):
            prepare(int8, config)
    packed = load_model(peer_folder, is_packed=True)
    if any(type(layer).__name__ == "PackedLinear" for layer in packed.network.modules()):
        with pytest.raises(ModelError, match=r"This model is packed for inference\. Load it with load_model"):
            prepare(packed, MethodConfig())


def test_what_was_trained_is_saved_as_what_it_is(peer_folder: Path, tmp_path: Path) -> None:
    for name, config in (("adapter", MethodConfig(lora=LoraConfig(rank=2))), ("whole", MethodConfig())):
        model = fresh(peer_folder)
        prepare(model, config)
        save_trained(model, config, tmp_path / name, base="x")
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    assert not (tmp_path / "adapter" / "config.json").exists()
    ids = some_ids(9)
    assert torch.equal(our_logits(fresh(tmp_path / "whole"), ids), our_logits(fresh(peer_folder), ids))
    assert not lora_layers(model)
    assert isinstance(model.network, nn.Module)
