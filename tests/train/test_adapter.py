"""Adapters as files: peft reads ours, we read peft's, and what would be computed wrongly is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM

from danlu.core.errors import ConfigError, ModelError
from danlu.models.save import save_model
from danlu.train.adapter import load_adapter, save_adapter
from danlu.train.lora import LoraConfig, add_lora
from danlu.train.merge import merge_lora

from ..models.case import save_peer
from ..models.families import FAMILIES
from ..models.peer import logits_of, save_llama, some_ids
from .adapters import ALL, move, our_logits, peer_model, with_adapter
from .chats import fresh

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers


@pytest.fixture(scope="module")
def peer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peer")
    save_llama(folder)
    return folder


# ---- peft reads ours, we read peft's ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(rank=3, alpha=7.0),
        LoraConfig(rank=2, targets=("qkv", "down")),
        LoraConfig(rank=4, rslora=True),
        LoraConfig(rank=2, dora=True),
        LoraConfig(rank=2, dora=True, rslora=True, targets=("q_proj", "v_proj", "gate_up"), layers=(1,)),
        LoraConfig(rank=2, ranks={"k_proj": 5, "down": 1}, alphas={"layers.1.mlp.down_proj": 20.0}),
        LoraConfig(rank=2, targets=("qkv",), train_also=("embed_tokens",)),
        LoraConfig(rank=2, train_also=("norm", "lm_head"), exclude=("out",)),
    ],
)
def test_peft_gives_the_same_logits_with_our_adapter(tmp_path: Path, peer_folder: Path, config: LoraConfig) -> None:
    model = with_adapter(peer_folder, config)
    save_adapter(model, tmp_path / "adapter", config, base="x")
    theirs = peft.PeftModel.from_pretrained(peer_model(peer_folder), tmp_path / "adapter").eval()
    ids = some_ids(30)
    torch.testing.assert_close(our_logits(model, ids), logits_of(theirs, ids), atol=1e-4, rtol=1e-4)
    changed = (our_logits(model, ids) - our_logits(fresh(peer_folder), ids)).abs().max()
    assert changed > 0.1
    again = fresh(peer_folder)
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(our_logits(again, ids), our_logits(model, ids))


PEFT_MADE = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "some-of-qkv": {"target_modules": ["q_proj", "v_proj"], "use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7}, "alpha_pattern": {"v_proj": 30}},
    "one-layer": {"layers_to_transform": 1},
    "layers": {"layers_to_transform": [0, 1]},
    "exclude": {"exclude_modules": ["down_proj"]},
    "dropout": {"lora_dropout": 0.1},
    "all-linear": {"target_modules": "all-linear"},
    "norms": {"modules_to_save": ["norm"]},
}


@pytest.mark.parametrize("kind", PEFT_MADE)
def test_we_give_the_same_logits_with_an_adapter_of_peft(kind: str, tmp_path: Path, peer_folder: Path) -> None:
    numbers = {"r": 4, "lora_alpha": 6, "target_modules": ALL, "init_lora_weights": False, **PEFT_MADE[kind]}
    theirs = peft.get_peft_model(peer_model(peer_folder), peft.LoraConfig(task_type="CAUSAL_LM", **numbers)).eval()
    moved_in_full(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    model = fresh(peer_folder)
    config = load_adapter(model, tmp_path / "adapter")
    assert (config.rank, config.alpha, config.dora) == (4, 6.0, numbers.get("use_dora", False))
    ids = some_ids(30)
    torch.testing.assert_close(our_logits(model, ids), logits_of(theirs, ids), atol=1e-4, rtol=1e-4)
    save_adapter(model, tmp_path / "again", config, base="x")
    ours, found = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("again", "adapter"))
    assert ours.keys() == found.keys()
    assert all(torch.equal(ours[name], found[name]) for name in ours)


@torch.no_grad()
def moved_in_full(theirs: Any) -> None:
    """Weights that train in full, and lengths of DoRA, away from where they begin."""
    torch.manual_seed(4)
    for name, parameter in theirs.named_parameters():
        if "modules_to_save" in name or "magnitude" in name:
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("modules", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_a_tied_table_that_peft_took_apart_is_taken_apart_here(
    modules: list[str], tmp_path: Path, peer_folder: Path
) -> None:
    """Its copy of the table trains, the head keeps the old one; merged and saved, both are still there."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=modules, task_type="CAUSAL_LM")
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        theirs = peft.get_peft_model(peer_model(peer_folder), config).eval()
    moved_in_full(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    model, ids = fresh(peer_folder), some_ids(30)
    assert model.config.is_tied
    load_adapter(model, tmp_path / "adapter")
    assert not model.config.is_tied
    expected = logits_of(theirs, ids)
    torch.testing.assert_close(our_logits(model, ids), expected, atol=1e-4, rtol=1e-4)
    merge_lora(model)
    save_model(model, tmp_path / "merged")
    torch.testing.assert_close(our_logits(fresh(tmp_path / "merged"), ids), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits_of(peer_model(tmp_path / "merged"), ids), expected, atol=1e-4, rtol=1e-4)


def test_a_tied_table_that_peft_kept_tied_stays_tied(tmp_path: Path, peer_folder: Path) -> None:
    config = peft.LoraConfig(
        r=2,
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens"],
        task_type="CAUSAL_LM",
        ensure_weight_tying=True,
    )
    theirs = peft.get_peft_model(peer_model(peer_folder), config).eval()
    moved_in_full(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    model, ids = fresh(peer_folder), some_ids(30)
    load_adapter(model, tmp_path / "adapter")
    assert model.config.is_tied
    torch.testing.assert_close(our_logits(model, ids), logits_of(theirs, ids), atol=1e-4, rtol=1e-4)


def test_a_family_with_one_table_only_refuses_two(tmp_path: Path) -> None:
    folder = save_peer(FAMILIES["bert"].make(), tmp_path / "bert")
    config = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["word_embeddings"])
    theirs = peft.get_peft_model(BertForMaskedLM.from_pretrained(folder), config)
    moved_in_full(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"This 'bert' reads and writes tokens with one table, and cannot have two\."):
        load_adapter(fresh(folder), tmp_path / "adapter")


# ---- other families --------------------------------------------------------------------------------------------------

ELSEWHERE = {
    "bert-classify": (
        ["query", "value", "intermediate.dense"],
        ("query", "value", "up"),
        ["classifier"],
        ("classifier",),
    ),
    "roberta-classify": (["query", "value"], ("query", "value"), ["classifier"], ("head",)),
    "distilbert-tag": (["q_lin", "lin2"], ("q_lin", "lin2"), ["classifier"], ("head",)),
    "t5": (["q", "v", "wo"], ("q", "v", "wo"), None, ()),
    "llama": (["q_proj", "up_proj"], ("q_proj", "up_proj"), ["lm_head"], ("lm_head",)),
    "gpt2": (["c_attn", "c_fc"], ("qkv", "up"), None, ()),
}
"""Case → targets in peft and here, and what trains in full in peft and here."""


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", ELSEWHERE)
def test_adapters_of_other_families_go_both_ways(name: str, dora: bool, tmp_path: Path) -> None:
    case = FAMILIES[name]
    folder = save_peer(case.make(), tmp_path / "base")
    theirs_targets, targets, theirs_also, also = ELSEWHERE[name]
    rows = case.compare.rows(case)

    def answers(peer: Any) -> list[torch.Tensor]:
        return case.compare.theirs(case, peer.eval().base_model.model, rows, "right")

    peer = type(case.make()).from_pretrained(folder)
    config = peft.LoraConfig(
        r=3, target_modules=theirs_targets, use_dora=dora, modules_to_save=theirs_also, init_lora_weights=False,
        use_rslora=True, fan_in_fan_out=name == "gpt2",
    )  # fmt: skip
    peer = peft.get_peft_model(peer, config)
    moved_in_full(peer)
    peer.save_pretrained(tmp_path / "theirs")
    model = fresh(folder)
    load_adapter(model, tmp_path / "theirs")
    with torch.no_grad():
        same(case.compare.ours(model, rows), answers(peer), case.atol)

    model, own = fresh(folder), LoraConfig(rank=3, targets=targets, dora=dora, train_also=also)
    torch.manual_seed(1)
    move(add_lora(model, own), 0.1)
    save_adapter(model, tmp_path / "ours", own, base=str(folder))
    peer = peft.PeftModel.from_pretrained(type(case.make()).from_pretrained(folder), tmp_path / "ours")
    with torch.no_grad():
        same(case.compare.ours(model, rows), answers(peer), case.atol)


def same(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], atol: float) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=atol, rtol=atol)


@pytest.mark.parametrize(
    ("name", "also", "task", "modules"),
    [
        ("roberta-classify", ("head",), "SEQ_CLS", ["classifier"]),
        ("bert-tag", ("classifier",), "TOKEN_CLS", ["classifier"]),
        ("bert-classify", ("head",), "SEQ_CLS", ["bert.pooler", "classifier"]),
        ("bert-classify", (), "FEATURE_EXTRACTION", None),
        ("llama-tied", ("embed_tokens",), "CAUSAL_LM", ["lm_head", "model.embed_tokens"]),
        ("olmo2-model", ("norm",), "FEATURE_EXTRACTION", ["norm"]),
        ("vit", ("head",), "FEATURE_EXTRACTION", ["classifier"]),
    ],
)
def test_the_config_names_the_task_and_what_trains_in_full(
    name: str, also: tuple[str, ...], task: str, modules: list[str] | None, tmp_path: Path
) -> None:
    model = fresh(save_peer(FAMILIES[name].make(), tmp_path / "base"))
    config = LoraConfig(rank=1, train_also=also)
    add_lora(model, config)
    save_adapter(model, tmp_path, config, base="x")
    theirs = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (theirs["task_type"], theirs["modules_to_save"]) == (task, modules)


def test_an_adapter_that_is_saved_and_loaded_is_the_same_model(tmp_path: Path, peer_folder: Path) -> None:
    config = LoraConfig(
        rank=3, alpha=5.0, targets=("out", "gate_up"), dora=True, dropout=0.1, ranks={"out": 5}, train_also=("norm",)
    )  # fmt: skip
    model = with_adapter(peer_folder, config)
    save_adapter(model, tmp_path / "a", config, base="x")
    again = fresh(peer_folder)
    found = load_adapter(again, tmp_path / "a")
    assert (found.alpha, found.dora, found.dropout, found.train_also) == (5.0, True, 0.1, ("model.norm",))
    assert torch.equal(our_logits(again, some_ids(9)), our_logits(model, some_ids(9)))
    save_adapter(again, tmp_path / "b", found, base="x")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path: Path, peer_folder: Path) -> Path:
    config = LoraConfig(rank=2)
    save_adapter(with_adapter(peer_folder, config), tmp_path / "adapter", config, base="x")
    return tmp_path / "adapter"


def refused(model_folder: Path, adapter: Path) -> str:
    with pytest.raises((ModelError, ConfigError)) as error:
        load_adapter(fresh(model_folder), adapter)
    return str(error.value)


def test_an_adapter_of_another_base_says_which_tensors_differ(tmp_path: Path, adapter: Path) -> None:
    save_llama(tmp_path / "wider", intermediate_size=64)
    text = refused(tmp_path / "wider", adapter)
    assert "The adapter does not fit this model: 6 of another shape (base_model.model.model.layers.0.mlp" in text
    assert "Was it trained on another base?" in text
    save_llama(tmp_path / "deeper", num_hidden_layers=3)
    assert "14 missing (base_model.model.model.layers.2.mlp.down" in refused(tmp_path / "deeper", adapter)
    save_llama(tmp_path / "flatter", num_hidden_layers=1)
    assert "14 not of this model (base_model.model.model.layers.1." in refused(tmp_path / "flatter", adapter)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_bias": True}, "lora_bias is True. Only False is supported so far."),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which changes the base too."),
        ({"use_dora": True}, "14 missing (base_model.model.model.layers.0.mlp.down_proj.lora_magnitude_vector"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'. Only 'LORA'"),
        ({"bias": "all"}, "bias is 'all'. Only 'none'"),
        (
            {"rank_pattern": {"q_proj": 8}},
            "4 of another shape (base_model.model.model.layers.0.self_attn.q_proj",
        ),
        ({"rank_pattern": {"q_.*": 8}}, "ranks has 'q_.*'. Known: all, "),
        ({"target_modules": ["q_proj", "c_attn"]}, "targets has 'c_attn'. Known: all, "),
        ({"target_modules": "q_proj|v_proj"}, "targets has 'q_proj|v_proj'."),
        ({"target_modules": ["q_proj", "v_proj"]}, "not of this model (base_model.model.model.layers.0.mlp"),
    ],
)
def test_an_adapter_that_would_be_computed_wrongly_is_refused(
    peer_folder: Path, adapter: Path, changes: dict[str, Any], message: str
) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert message in refused(peer_folder, adapter)


def test_a_folder_that_is_no_whole_adapter_is_refused(tmp_path: Path, peer_folder: Path, adapter: Path) -> None:
    assert "has no adapter_config.json. Give the folder of a PEFT adapter." in refused(peer_folder, tmp_path)
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    assert "adapter_model.safetensors is damaged: " in refused(peer_folder, adapter)
    weights.unlink()
    assert "has no adapter_model.safetensors. Copy the adapter again." in refused(peer_folder, adapter)
    (adapter / "adapter_config.json").write_text('{"lora_alpha": 4, "target_modules": []}')
    assert "adapter_config.json lacks 'r'." in refused(peer_folder, adapter)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["k_proj", "up_proj"], ["o_proj", "v_proj"]])
def test_part_of_a_fused_projection_takes_an_adapter_as_in_peft(
    tmp_path: Path, peer_folder: Path, targets: list[str]
) -> None:
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    theirs = peft.get_peft_model(peer_model(peer_folder), config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    model, ids = fresh(peer_folder), some_ids(30)
    load_adapter(model, tmp_path / "adapter")
    torch.testing.assert_close(our_logits(model, ids), logits_of(theirs, ids), atol=1e-4, rtol=1e-4)
    save_adapter(model, tmp_path / "again", LoraConfig(rank=4, alpha=6.0, targets=tuple(targets)), base="x")
    ours, found = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("again", "adapter"))
    assert ours.keys() == found.keys()
    assert all(torch.equal(ours[name], found[name]) for name in ours)
    merge_lora(model)
    torch.testing.assert_close(our_logits(model, ids), logits_of(theirs, ids), atol=1e-4, rtol=1e-4)


def test_a_projection_that_lacks_its_tensors_is_refused_by_name(peer_folder: Path, adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "k_proj" not in name}
    save_file(kept, adapter / "adapter_model.safetensors")
    assert "4 missing (base_model.model.model.layers.0.self_attn.k_proj.lora_A" in refused(peer_folder, adapter)
