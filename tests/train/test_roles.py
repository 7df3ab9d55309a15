from pathlib import Path

import pytest
from torch import nn

from danlu.models.load import load_model
from danlu.train.lora import LoraConfig, add_lora
from danlu.train.roles import Roles, roles_of
from tests.models.case import save_peer
from tests.models.families import FAMILIES

pytestmark = pytest.mark.usefixtures("one_thread")


def network_of(family: str, tmp_path: Path) -> nn.Module:
    return load_model(save_peer(FAMILIES[family].make(), tmp_path / family), precision="fp32").network


def others(network: nn.Module, roles: Roles) -> set[str]:
    """Matrices that are neither."""
    matrices = {name for name, parameter in network.named_parameters() if parameter.ndim >= 2}
    assert roles.hidden | roles.embeddings <= matrices
    return matrices - roles.hidden - roles.embeddings


def test_linears_of_blocks_are_hidden_and_the_head_is_not(tmp_path: Path) -> None:
    network = network_of("llama", tmp_path)
    roles = roles_of(network)
    assert roles.embeddings == {"embedding.tokens.weight"}
    assert others(network, roles) == {"head.linear.weight"}
    assert {name.partition(".0.")[2] for name in roles.hidden if ".0." in name} == {
        "mixer.inner.qkv.weight", "mixer.inner.out.weight",
        "feedforward.inner.gate_up.weight", "feedforward.inner.down.weight",
    }  # fmt: skip


def test_parts_are_all_rows_of_fused_matrices(tmp_path: Path) -> None:
    network = network_of("llama", tmp_path)
    roles = roles_of(network)
    assert roles.parts["stack.blocks.0.mixer.inner.qkv.weight"] == (32, 16, 16)
    assert "stack.blocks.0.mixer.inner.out.weight" not in roles.parts
    for name, rows in roles.parts.items():
        assert sum(rows) == network.get_parameter(name).shape[-2]


def test_a_tied_head_is_its_table(tmp_path: Path) -> None:
    network = network_of("llama-tied", tmp_path)
    assert others(network, roles_of(network)) == set()


def test_tables_of_places_types_and_distances_are_embeddings(tmp_path: Path) -> None:
    assert roles_of(network_of("bert", tmp_path)).embeddings == {
        "embedding.tokens.weight", "embedding.positions", "embedding.types",
    }  # fmt: skip
    encoder_decoder = roles_of(network_of("t5-model", tmp_path))
    assert "encoder.stack.relative.weight" in encoder_decoder.embeddings
    assert any(name.startswith("encoder.stack.blocks.0.") for name in encoder_decoder.hidden)
    assert "stack.blocks.0.cross.inner.kv.weight" in encoder_decoder.hidden


def test_experts_are_hidden_and_their_routers_are_not(tmp_path: Path) -> None:
    network = network_of("mixtral", tmp_path)
    roles = roles_of(network)
    experts = "stack.blocks.0.feedforward.inner.gate_up.weight"
    assert network.get_parameter(experts).ndim == 3
    assert sum(roles.parts[experts]) == network.get_parameter(experts).shape[-2]
    assert {name.rpartition("inner.")[2] for name in others(network, roles) if ".blocks." in name} == {"router.weight"}


def test_adapters_are_none_of_these(tmp_path: Path) -> None:
    model = load_model(save_peer(FAMILIES["llama"].make(), tmp_path / "base"), precision="fp32")
    add_lora(model, LoraConfig())
    roles = roles_of(model.network)
    trained = {name for name, parameter in model.network.named_parameters() if parameter.requires_grad}
    assert trained
    assert not trained & (roles.hidden | roles.embeddings)
