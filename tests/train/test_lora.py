"""Adapters on linears: what they compute, what trains, and that it is what peft does, step for step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from danlu.core.device import seed_everything
from danlu.core.errors import ConfigError
from danlu.data.packing import pack
from danlu.models.archs.llama import plugin as llama
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.models.quant import Int8Linear
from danlu.text.chat import RenderedChat
from danlu.train.adapter import load_adapter, load_lora_state, lora_state, save_adapter
from danlu.train.dora import changed_lengths, row_squares
from danlu.train.lora import LoraConfig, LoraLinear, add_lora, lora_layers
from danlu.train.loss import collate, summed_loss
from danlu.train.optim import OptimConfig, rate_at
from danlu.train.run import Job
from danlu.train.stages.sft import SftConfig, encode_rows, finetune

from ..models.peer import save_llama, some_ids
from .adapters import move, our_logits, peer_model, with_adapter
from .chats import Events, chats, fresh
from .test_loss import peer_loss

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers

SMOLLM2 = {
    "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip
"""config.json of SmolLM2-135M, as far as its size goes."""


@pytest.fixture(scope="module")
def peer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peer")
    save_llama(folder)
    return folder


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


def test_adapters_stay_in_fp32_on_a_bf16_base(peer_folder: Path) -> None:
    """Updates smaller than a bf16 step must not vanish."""
    model = load_model(peer_folder, precision="bf16")
    assert all(parameter.dtype == torch.float32 for parameter in add_lora(model, LoraConfig(rank=2)))
    assert our_logits(model, [1, 2, 3]).dtype == torch.bfloat16


# ---- peft, step for step ---------------------------------------------------------------------------------------------


KINDS = {
    "plain": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "everything": {"rslora": True, "dora": True, "targets": ("q_proj", "v_proj", "down_proj"), "ranks": {"q_proj": 5}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_equal_peft_in_every_loss(kind: str, tmp_path: Path, peer_folder: Path) -> None:
    """Same A, B and lengths, same batch, AdamW: losses to 1e-5 at every step, adapters to 1e-4 at the end."""
    config = LoraConfig(**{"rank": 3, "alpha": 6.0, **KINDS[kind]})
    ours = with_adapter(peer_folder, config, spread=0.05)
    save_adapter(ours, tmp_path / "start", config, base=str(peer_folder))
    begin = lora_state(ours)
    theirs = peft.PeftModel.from_pretrained(peer_model(peer_folder), tmp_path / "start", is_trainable=True)
    rows = [RenderedChat(some_ids(length, seed=length), [True] * length) for length in (9, 17, 30)]
    batch = collate(rows)
    parameters = [parameter for parameter in ours.network.parameters() if parameter.requires_grad]
    others = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    assert sum(p.numel() for p in parameters) == sum(p.numel() for p in others)
    adam, other_adam = torch.optim.AdamW(parameters, lr=1e-3), torch.optim.AdamW(others, lr=1e-3)
    losses: list[tuple[float, float]] = []
    for _ in range(20):
        mine, other = summed_loss(ours.network, batch) / batch.targets.shape[0], peer_loss(theirs, rows)
        losses.append((float(mine.detach()), float(other.detach())))
        for loss, optimizer in ((mine, adam), (other, other_adam)):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert max(abs(mine - other) for mine, other in losses) < 1e-5
    assert losses[-1][0] < losses[0][0] - 0.01
    found, expected = lora_state(ours), peft.get_peft_model_state_dict(theirs)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=0)
        assert (tensor - begin[name]).abs().max() > 1e-3, name


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

    job = Job(work=tmp_path / "work", log_path=tmp_path / "curve.jsonl", events=Events(), seed=11)
    finetune(ours, rows, [], config, job)
    found, begin = lora_state(ours), lora_state(start)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=0)
    assert all((found[name] - begin[name]).abs().max() > 1e-3 for name in found)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, r"rank is 0\. Use 1 or more"),
        ({"alpha": 0.0}, r"alpha is 0\.0\. Use a positive number"),
        ({"targets": ()}, r"targets is empty\. Name at least one"),
        ({"dropout": 1.0}, r"dropout is 1\.0\. Use 0 or more, and less than 1"),
        ({"plus_ratio": 0.5}, r"plus_ratio is 0\.5\. Use 1 \(off\) or more"),
        ({"layers": ()}, r"layers is empty\. Name at least one block"),
        ({"ranks": {"q_proj": 0}}, r"ranks\.q_proj is 0\. Use 1 or more"),
        ({"alphas": {"q_proj": -1.0}}, r"alphas\.q_proj is -1\.0\. Use a positive"),
    ],
)
def test_settings_that_make_no_adapter_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**changes)


def test_a_linear_that_is_not_there_is_named(peer_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"targets has 'head'\. Known: all, down, down_proj, gate_proj, gate_up, "):
        add_lora(fresh(peer_folder), LoraConfig(targets=("qkv", "head")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exclude": ("qvk",)}, r"exclude has 'qvk'\. Known: all, down"),
        ({"layers": (0, 7)}, r"layers has 7\. The model has blocks 0 to 1\."),
        ({"exclude": ("all",)}, r"No linear is left to adapt\. Take names out of exclude"),
        ({"train_also": ("qkv",)}, r"train_also means stack\.blocks\.0\.mixer\.inner\.qkv, which has an adapter"),
        ({"train_also": ("clasifier",)}, r"train_also has 'clasifier', which means no weight of this model"),
        (
            {"train_also": ("q_proj",), "targets": ("down",)},
            r"train_also means model\S*q_proj.*one matrix with model\S*k_",
        ),
    ],
)
def test_names_that_cannot_be_followed_are_refused(changes: dict[str, Any], message: str, peer_folder: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        add_lora(fresh(peer_folder), LoraConfig(**changes))


def test_adapters_are_where_they_were_asked_for(peer_folder: Path) -> None:
    config = LoraConfig(targets=("qkv", "down_proj"), exclude=("k_proj",), layers=(1,))
    model = fresh(peer_folder)
    add_lora(model, config)
    names = {
        name.removeprefix("base_model.model.model.layers.").removesuffix(".lora_A.weight") for name in lora_state(model)
    }
    assert {name for name in names if "lora_B" not in name} == {
        "1.self_attn.q_proj",
        "1.self_attn.v_proj",
        "1.mlp.down_proj",
    }


# ---- DoRA, dropout ---------------------------------------------------------------------------------------------------


def test_the_lengths_of_changed_rows_are_found_without_the_changed_weight() -> None:
    torch.manual_seed(0)
    base, a, b = torch.nn.Linear(30, 1100), torch.randn(4, 30), torch.randn(700, 4)
    found = changed_lengths(base, 200, row_squares(base, 200, 900), a, b, 0.7)
    torch.testing.assert_close(found, (base.weight[200:900] + 0.7 * b @ a).norm(dim=1))


def test_dora_begins_as_the_base_and_moves_lengths_and_directions_apart(peer_folder: Path) -> None:
    model, base = fresh(peer_folder), fresh(peer_folder)
    add_lora(model, LoraConfig(rank=2, dora=True))
    ids = some_ids(12)
    torch.testing.assert_close(our_logits(model, ids), our_logits(base, ids), atol=1e-5, rtol=1e-5)
    layer = lora_layers(model)["stack.blocks.0.mixer.inner.qkv"]
    assert isinstance(layer, LoraLinear)
    assert layer.m is not None
    with torch.no_grad():
        layer.m[1].mul_(3.0)
        changed = layer.base.weight + layer.delta()
    assert torch.allclose(changed[32:48], 3.0 * layer.base.weight[32:48], atol=1e-5)
    assert torch.allclose(changed[:32], layer.base.weight[:32], atol=1e-5)


def test_dropout_acts_on_the_adapter_and_only_in_training(peer_folder: Path) -> None:
    model = with_adapter(peer_folder, LoraConfig(rank=2, dropout=0.5))
    layer = lora_layers(model)["stack.blocks.0.mixer.inner.out"]
    x = torch.randn(6, 32)
    model.network.eval()
    still = layer(x)
    torch.testing.assert_close(still, layer.base(x) + x @ layer.delta().t())
    assert torch.equal(layer(x), still)
    model.network.train()
    draws = torch.stack([layer(x) for _ in range(3000)]).detach()
    assert not torch.equal(draws[0], still)
    torch.testing.assert_close(draws.mean(dim=0), still.detach(), atol=0.15, rtol=0.05)  # dropped inputs are scaled up
    assert (layer.base(x) - still).abs().max() > 0.5


def test_dora_with_dropout_trains_as_it_does_in_peft(tmp_path: Path, peer_folder: Path) -> None:
    """The dropped input also goes through the frozen weight there, once for all."""
    config = LoraConfig(rank=2, dora=True, dropout=0.3, targets=("o_proj",))
    model = with_adapter(peer_folder, config)
    save_adapter(model, tmp_path / "a", config, base="x")
    theirs = peft.PeftModel.from_pretrained(peer_model(peer_folder), tmp_path / "a", is_trainable=True).train()
    layer = lora_layers(model)["stack.blocks.0.mixer.inner.out"].train()
    other = theirs.base_model.model.model.layers[0].self_attn.o_proj
    x = torch.randn(5, 32)
    torch.manual_seed(3)
    mine = layer(x)
    torch.manual_seed(3)
    torch.testing.assert_close(mine, other(x), atol=1e-5, rtol=1e-5)


# ---- 8-bit bases -----------------------------------------------------------------------------------------------------


def test_adapters_on_8_bit_linears_get_the_gradients_of_the_plain_numbers(peer_folder: Path) -> None:
    """The same adapter on the weights that the 8 bits stand for: gradients differ by the rounding of activations."""
    int8 = load_model(peer_folder, precision="fp32", scheme="int8")
    torch.manual_seed(2)
    move(add_lora(int8, LoraConfig(rank=3)))
    plain = fresh(peer_folder)
    for name, layer in lora_layers(int8).items():
        linear, base = plain.network.get_submodule(name), layer.base
        assert isinstance(linear, torch.nn.Linear)
        assert isinstance(base, Int8Linear)
        linear.weight = torch.nn.Parameter(base.plain_rows(0, linear.out_features), requires_grad=False)
    add_lora(plain, LoraConfig(rank=3))
    load_lora_state(plain, lora_state(int8))
    batch = collate([RenderedChat(some_ids(40), [True] * 40)])
    for model in (int8, plain):
        summed_loss(model.network, batch).backward()
    pairs = zip(gradients(int8), gradients(plain), strict=True)
    assert min(float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)) for a, b in pairs) > 0.97


def gradients(model: Model) -> list[torch.Tensor]:
    found = [p.grad for p in model.network.parameters() if p.requires_grad]
    assert all(g is not None for g in found)
    return [g for g in found if g is not None]


@pytest.mark.parametrize("changes", [{}, {"dora": True}, {"targets": ("q_proj", "down")}])
def test_an_8_bit_model_learns(changes: dict[str, Any], peer_folder: Path) -> None:
    model = load_model(peer_folder, precision="fp32", scheme="int8")
    before = {name: buffer.clone() for name, buffer in model.network.named_buffers() if buffer.dtype == torch.int8}
    parameters = add_lora(model, LoraConfig(rank=3, **changes))
    batch = collate([RenderedChat(some_ids(40), [True] * 40)])
    adam = torch.optim.AdamW(parameters, lr=1e-2)
    losses: list[float] = []
    for _ in range(12):
        loss = summed_loss(model.network, batch) / 39
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.5
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.network.named_buffers() if name in before)


def test_an_adapter_made_on_8_bits_is_one_for_the_plain_model(tmp_path: Path, peer_folder: Path) -> None:
    config = LoraConfig(rank=2)
    int8 = load_model(peer_folder, precision="fp32", scheme="int8")
    torch.manual_seed(1)
    move(add_lora(int8, config))
    save_adapter(int8, tmp_path / "a", config, base="x")
    plain = fresh(peer_folder)
    load_adapter(plain, tmp_path / "a")
    ids = some_ids(20)
    difference = (our_logits(int8, ids) - our_logits(plain, ids)).norm() / our_logits(plain, ids).norm()
    assert 0 < difference < 0.1


def test_weights_of_8_bits_do_not_train_in_full(peer_folder: Path) -> None:
    model = load_model(peer_folder, precision="fp32", scheme="int8")
    with pytest.raises(ConfigError, match=r"train_also has 'embed_tokens', whose weights are 8-bit numbers here"):
        add_lora(model, LoraConfig(train_also=("embed_tokens",)))
