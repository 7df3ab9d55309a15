import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from danlu.compress.quantize import QuantizeConfig, quantize
from danlu.core.device import seed_everything
from danlu.core.errors import ConfigError, ModelError
from danlu.data.packing import pack
from danlu.models.archs.llama import plugin as llama
from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel
from danlu.models.model import Model
from danlu.models.save import save_model
from danlu.text.chat import RenderedChat
from danlu.train.lora import LoraConfig, add_lora, load_adapter, lora_layers, lora_state, merge_lora, save_adapter
from danlu.train.loss import collate, summed_loss
from danlu.train.optim import OptimConfig, rate_at
from danlu.train.stages.sft import SftConfig, encode_rows, finetune

from ..models.peer import logits_of, save_llama, some_ids
from .chats import Events, chats, fresh
from .test_loss import peer_loss

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers

SMOLLM2 = {
    "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip
"""config.json of SmolLM2-135M, as far as its size goes."""
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def peer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peer")
    save_llama(folder)
    return folder


def peer_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def our_logits(model: Model, ids: list[int]) -> torch.Tensor:
    return LoadedModel(model).logits(torch.tensor([ids]))[0]


def with_adapter(folder: Path, config: LoraConfig, spread: float = 0.2) -> Model:
    """A model whose adapter says something."""
    model = fresh(folder)
    torch.manual_seed(1)
    for parameter in add_lora(model, config):
        torch.nn.init.normal_(parameter, std=spread)
    return model


def test_an_adapter_begins_as_no_change(peer_folder: Path) -> None:
    model = fresh(peer_folder)
    before = our_logits(model, some_ids(20))
    add_lora(model, LoraConfig(rank=4))
    assert torch.equal(our_logits(model, some_ids(20)), before)
    assert any(layer.a.abs().sum() > 0 for layer in lora_layers(model).values())


def test_only_the_adapter_learns_and_all_of_it_moves(peer_folder: Path) -> None:
    model = with_adapter(peer_folder, LoraConfig(rank=2))
    summed_loss(model.network, collate([RenderedChat(some_ids(9), [True] * 9)])).backward()
    for name, parameter in model.network.named_parameters():
        is_adapter = name.split(".")[-1] == "a" or ".b." in name
        assert parameter.requires_grad == is_adapter, name
        assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == is_adapter, name


@pytest.mark.parametrize("targets", [("qkv", "out", "gate_up", "down"), ("qkv",), ("down", "out")])
def test_its_size_is_rank_times_the_sides_of_every_projection(peer_folder: Path, targets: tuple[str, ...]) -> None:
    width, feedforward, keys = 32, 48, 16
    sides = {
        "qkv": [(width, width), (width, keys), (width, keys)],
        "out": [(width, width)],
        "gate_up": [(width, feedforward)] * 2,
        "down": [(feedforward, width)],
    }
    trainable = add_lora(fresh(peer_folder), LoraConfig(rank=3, targets=targets))
    assert sum(p.numel() for p in trainable) == 2 * sum(3 * (i + o) for t in targets for i, o in sides[t])


def test_it_trains_less_than_one_percent_of_the_real_model() -> None:
    """The default adapter on SmolLM2-135M, without its weights."""
    with torch.device("meta"):
        network = llama.read_config(SMOLLM2).make()
    base = sum(parameter.numel() for parameter in network.parameters())
    assert base == 134_515_008
    model = Model(network, SMOLLM2, llama, dtype=torch.float32)
    share = sum(p.numel() for p in add_lora(model, LoraConfig())) / base
    assert 0.005 < share <= 0.01


# ---- peft reads ours, we read peft's ---------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [LoraConfig(rank=3, alpha=7.0), LoraConfig(rank=2, targets=("qkv", "down"))])
def test_peft_gives_the_same_logits_with_our_adapter(tmp_path: Path, peer_folder: Path, config: LoraConfig) -> None:
    model = with_adapter(peer_folder, config)
    save_adapter(model, tmp_path / "adapter", config, base="x")
    theirs = peft.PeftModel.from_pretrained(peer_model(peer_folder), tmp_path / "adapter").eval()
    ids = some_ids(30)
    torch.testing.assert_close(our_logits(model, ids), logits_of(theirs, ids), atol=1e-4, rtol=1e-4)
    changed = (our_logits(model, ids) - our_logits(fresh(peer_folder), ids)).abs().max()
    assert changed > 0.1


def test_we_give_the_same_logits_with_an_adapter_of_peft(tmp_path: Path, peer_folder: Path) -> None:
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=ALL, task_type="CAUSAL_LM", init_lora_weights=False)
    theirs = peft.get_peft_model(peer_model(peer_folder), config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    model = fresh(peer_folder)
    assert load_adapter(model, tmp_path / "adapter") == LoraConfig(rank=4, alpha=6.0, targets=tuple(sorted(ALL)))
    ids = some_ids(30)
    torch.testing.assert_close(our_logits(model, ids), logits_of(theirs, ids), atol=1e-4, rtol=1e-4)


def test_five_steps_of_training_equal_the_same_loop_on_peft(tmp_path: Path, peer_folder: Path) -> None:
    """Same start, same batches, the plain loop everybody writes: AdamW, clipped gradients, mean over learnt tokens."""
    optim = OptimConfig(learning_rate=5e-3, warmup_share=0.4, weight_decay=0.1, clip_norm=0.5)
    config = SftConfig(steps=5, tokens_per_step=150, max_row_tokens=80, lora=LoraConfig(rank=3), optim=optim)
    ours = fresh(peer_folder)
    rows = encode_rows(chats(12), ours.chat, 80).encoded

    start = fresh(peer_folder)
    seed_everything(11)
    add_lora(start, config.lora)
    save_adapter(start, tmp_path / "start", config.lora, base=str(peer_folder))
    theirs = peft.PeftModel.from_pretrained(peer_model(peer_folder), tmp_path / "start", is_trainable=True)
    parameters = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    adam = torch.optim.AdamW(parameters, lr=1.0, betas=(optim.beta1, optim.beta2), weight_decay=optim.weight_decay)
    lengths = [len(row.ids) for row in rows]
    order = [batch for epoch in range(5) for batch in pack(lengths, 150, seed=11 + epoch)][:5]
    assert any(len(batch) > 1 for batch in order)
    for step, batch in enumerate(order):
        adam.param_groups[0]["lr"] = rate_at(step, 5, optim)
        peer_loss(theirs, [rows[row] for row in batch]).backward()
        torch.nn.utils.clip_grad_norm_(parameters, optim.clip_norm)
        adam.step()
        adam.zero_grad()
    expected = peft.get_peft_model_state_dict(theirs)

    finetune(
        ours, rows, [], config, seed=11, work=tmp_path / "work", log_path=tmp_path / "curve.jsonl", events=Events()
    )
    found, begin = lora_state(ours), lora_state(start)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=0)
    assert all((found[name] - begin[name]).abs().max() > 1e-3 for name in found)


# ---- merging ---------------------------------------------------------------------------------------------------------


def test_merging_changes_no_logits_and_says_how_much_weights_moved(peer_folder: Path) -> None:
    model = with_adapter(peer_folder, LoraConfig(rank=3))
    ids = some_ids(30)
    before = our_logits(model, ids)
    largest = max(float(layer.delta().detach().abs().max()) for layer in lora_layers(model).values())
    assert merge_lora(model) == pytest.approx(largest)
    assert not lora_layers(model)
    torch.testing.assert_close(our_logits(model, ids), before, atol=1e-4, rtol=1e-4)


def test_a_merged_model_is_what_peft_merges_to(tmp_path: Path, peer_folder: Path) -> None:
    config = LoraConfig(rank=3)
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
    merge_lora(model)
    for name, weight in expected.items():
        assert torch.equal(model.network.get_submodule(name).weight, weight)


def test_adapters_stay_in_fp32_on_a_bf16_base(peer_folder: Path) -> None:
    """Updates smaller than a bf16 step must not vanish."""
    model = load_model(peer_folder, precision="bf16")
    assert all(parameter.dtype == torch.float32 for parameter in add_lora(model, LoraConfig(rank=2)))
    assert our_logits(model, [1, 2, 3]).dtype == torch.bfloat16


def test_an_adapter_that_is_saved_and_loaded_is_the_same_model(tmp_path: Path, peer_folder: Path) -> None:
    config = LoraConfig(rank=3, alpha=5.0, targets=("out", "gate_up"))
    model = with_adapter(peer_folder, config)
    save_adapter(model, tmp_path / "a", config, base="x")
    again = fresh(peer_folder)
    assert load_adapter(again, tmp_path / "a").alpha == 5.0
    assert torch.equal(our_logits(again, some_ids(9)), our_logits(model, some_ids(9)))
    save_adapter(again, tmp_path / "b", config, base="x")
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
        ({"use_dora": True}, "use_dora is True. Only False is supported so far."),
        ({"use_rslora": True}, "use_rslora is True."),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'. Only 'LORA'"),
        ({"bias": "all"}, "bias is 'all'. Only 'none'"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is {'q_proj': 8}"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, r"rank is 0\. Use 1 or more"),
        ({"alpha": 0.0}, r"alpha is 0\.0\. Use a positive number"),
        ({"targets": ()}, r"targets is empty\. Name at least one"),
    ],
)
def test_settings_that_make_no_adapter_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**changes)


def test_a_linear_that_is_not_there_is_named(peer_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"targets has 'head'\. Known: all, down, down_proj, gate_proj, gate_up, "):
        add_lora(fresh(peer_folder), LoraConfig(targets=("qkv", "head")))


def test_a_quantised_model_takes_no_adapter(tmp_path: Path, peer_folder: Path) -> None:
    quantize(Path(shutil.copytree(peer_folder, tmp_path / "m")), tmp_path / "int8", QuantizeConfig())
    with pytest.raises(ModelError, match=r"No linear of this model takes an adapter\. Fine-tune plain weights"):
        add_lora(load_model(tmp_path / "int8"), LoraConfig())
