"""Fine-tuning of all weights: a hand-written loop, number types, crashes under every setting, and odd rows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from danlu.core.events import Events
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.models.save import checkpoint, save_model
from danlu.text.chat import RenderedChat
from danlu.train.batches import RowBatches
from danlu.train.optim import OptimConfig, rate_at
from danlu.train.run import Job
from danlu.train.stages.sft import SftConfig, encode_rows, finetune
from danlu.train.start import load_to_train
from tests.models.peer import logits_of, our_logits, save_llama, some_ids
from tests.train.chats import CONFIG, Stop, chats, train
from tests.train.test_loss import peer_loss

pytestmark = pytest.mark.usefixtures("one_thread")

FULL = dataclasses.replace(
    CONFIG, steps=10, lora=None, precision="fp32", optim=OptimConfig(learning_rate=3e-3, weight_decay=0.1)
)


def fresh(folder: Path, config: SftConfig = FULL) -> Model:
    """As the recipe stage loads it."""
    return load_to_train(folder, config)


def losses(work: Path) -> list[float]:
    lines = [json.loads(line) for line in (work.parent / "curve.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """‖one - other‖ over all tensors."""
    assert one.keys() == other.keys()
    return float(torch.stack([(one[name].float() - other[name].float()).square().sum() for name in one]).sum().sqrt())


# ---- against a loop of its own ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of transformers."""
    path = tmp_path_factory.mktemp("full") / "m"
    save_llama(path)
    return path


@pytest.fixture(scope="module")
def by_hand(folder: Path) -> tuple[list[float], LlamaForCausalLM]:
    """Losses of ten steps on padded rows with torch's AdamW, and the model after them."""
    peer = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = encode_rows(chats(28), fresh(folder).chat, FULL.max_row_tokens).encoded[4:]
    order = RowBatches(rows, lambda row: len(row.ids), seed=3, tokens_per_step=FULL.tokens_per_step)
    plain = [p for n, p in peer.named_parameters() if p.ndim < 2 or "embed" in n]
    decayed = [p for n, p in peer.named_parameters() if p.ndim == 2 and "embed" not in n]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-8)
    found: list[float] = []
    for step in range(FULL.steps):
        (batch,) = order.at(step)
        loss = peer_loss(peer, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, FULL.steps, FULL.optim)
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    return found, peer.eval()


@pytest.mark.parametrize("changes", [{}, {"micro_tokens": 50}, {"recompute": "full"}], ids=str)
def test_ten_steps_are_those_of_a_hand_written_loop(
    folder: Path, tmp_path: Path, by_hand: tuple[list[float], LlamaForCausalLM], changes: dict[str, Any]
) -> None:
    """Rows of a step have unlike numbers of learnt tokens: micro-batches are added up, never means of means."""
    model = fresh(folder)
    train(model, tmp_path / "work", dataclasses.replace(FULL, **changes))
    assert losses(tmp_path / "work") == pytest.approx(by_hand[0], abs=1e-5)
    save_model(model, tmp_path / "saved")
    again, found = LlamaForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True, dtype=torch.float32)  # pyright: ignore[reportGeneralTypeIssues]
    assert not any(found.values())
    for name, theirs in by_hand[1].state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], theirs, atol=1e-4, rtol=1e-4, msg=name)
    ids = some_ids(30)
    torch.testing.assert_close(our_logits(model, ids), logits_of(again.eval(), ids), atol=1e-4, rtol=1e-4)


def test_a_bf16_run_follows_the_fp32_one_and_saves_what_it_learnt(
    folder: Path, tmp_path: Path, by_hand: tuple[list[float], LlamaForCausalLM]
) -> None:
    config = dataclasses.replace(FULL, precision="bf16")
    model = fresh(folder, config)
    before = {name: tensor.clone() for name, tensor in checkpoint(model).items()}
    train(model, tmp_path / "work", config)
    found = losses(tmp_path / "work")
    assert found == pytest.approx(by_hand[0], rel=0.02)
    assert found != pytest.approx(by_hand[0], abs=1e-5), "it computed in bf16"
    exact = {name: tensor for name, tensor in by_hand[1].state_dict().items() if name in before}
    learnt = {name: tensor.clone() for name, tensor in checkpoint(model).items()}
    assert {tensor.dtype for tensor in learnt.values()} == {torch.float32}
    assert model.precision == "fp32"
    assert distance(learnt, exact) < 0.2 * distance(before, exact)
    save_model(model, tmp_path / "saved")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto").eval()
    assert again.dtype == torch.float32
    ids = some_ids(30)
    torch.testing.assert_close(our_logits(model, ids), logits_of(again, ids), atol=1e-4, rtol=1e-4)
    reloaded = our_logits(load_model(tmp_path / "saved", precision="fp32"), ids)
    assert torch.equal(reloaded, our_logits(model, ids))


# ---- crashes ---------------------------------------------------------------------------------------------------------


class Crash(Exception):
    """The process is gone."""


def optim(**changes: Any) -> OptimConfig:
    return dataclasses.replace(FULL.optim, **changes)


CRASHED: dict[str, dict[str, Any]] = {
    "plain": {},
    "micro": {"micro_tokens": 50},
    "recomputed": {"recompute": "full", "micro_tokens": 50},
    "averaged": {"optim": optim(ema_decay=0.7)},
    "muon": {"optim": optim(name="muon")},
    "8bit": {"optim": optim(name="adamw8bit")},
    "sgd": {"optim": optim(name="sgd", learning_rate=0.3)},
    "best": {"keep": "best", "optim": optim(learning_rate=0.2, schedule="constant")},
    "best-patience": {"keep": "best", "patience": 1, "optim": optim(learning_rate=0.2, schedule="constant")},
    "best-averaged": {"keep": "best", "optim": optim(ema_decay=0.5, learning_rate=0.2, schedule="constant")},
    "bf16": {"precision": "bf16"},
    "bf16-averaged-muon-best": {
        "precision": "bf16", "keep": "best", "micro_tokens": 50, "recompute": "half",
        "optim": optim(name="muon", ema_decay=0.5, learning_rate=1.0, schedule="constant"),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CRASHED)
def test_crashed_twice_it_ends_with_the_same_weights(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    """Steps 6 and 9 are done, validated and lost; the run goes on from 4 and 8."""
    options: dict[str, Any] = {"steps": 12, "save_every": 4, "validate_every": 3, **CRASHED[name]}
    config = dataclasses.replace(FULL, **options)
    whole = fresh(tiny_folder, config)
    metrics = train(whole, tmp_path / "whole" / "work", config)
    for stop in (6, 9):
        with pytest.raises(Crash):
            train(fresh(tiny_folder, config), tmp_path / "cut" / "work", config, display=Stop(stop, Crash()))
    again = fresh(tiny_folder, config)
    resumed = train(again, tmp_path / "cut" / "work", config)
    ours, theirs = checkpoint(again), checkpoint(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    curves = [(tmp_path / part / "curve.jsonl").read_text() for part in ("whole", "cut")]
    assert curves[0] == curves[1]
    kept = ("steps", "best_step", "best_validation_loss", "stopped_early", "skipped_steps", "last_loss")
    assert {key: resumed[key] for key in kept} == {key: metrics[key] for key in kept}
    assert metrics["stopped_early"] == bool(config.patience)
    if config.keep == "best":
        assert metrics["best_step"] < metrics["steps"], "the last weights are not the best, so this says something"


# ---- odd rows --------------------------------------------------------------------------------------------------------


def run_on(
    model: Model, rows: list[RenderedChat], work: Path, validation: list[RenderedChat] | None = None, **changes: Any
) -> dict[str, Any]:
    """Fine-tune on these rows."""
    job = Job(work=work, log_path=work.parent / "curve.jsonl", events=Events(), seed=3)
    return finetune(model, rows, validation or [], dataclasses.replace(FULL, **changes), job)


def is_sound(model: Model) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in checkpoint(model).values())


def test_ten_times_the_rows_are_each_seen_once_an_epoch(tiny_folder: Path, tmp_path: Path) -> None:
    model = fresh(tiny_folder)
    rows = encode_rows(chats(40) * 10, model.chat, FULL.max_row_tokens).encoded
    seen: list[int] = []
    batches = RowBatches(range(400), lambda i: len(rows[i].ids), seed=3, tokens_per_step=2000)
    for step in range(batches.per_epoch):
        seen += batches.at(step)[0]
    assert sorted(seen) == list(range(400))
    metrics = run_on(model, rows, tmp_path / "work", steps=None, epochs=1.0, tokens_per_step=2000)
    assert metrics["steps"] == batches.per_epoch
    assert metrics["packing_fill"] > 0.95
    assert metrics["last_loss"] < 0.8 * metrics["first_loss"]


def test_a_row_ten_times_as_long_stands_beside_short_ones(tiny_folder: Path, tmp_path: Path) -> None:
    model = fresh(tiny_folder)
    short = encode_rows(chats(12), model.chat, 80).encoded
    long = RenderedChat(some_ids(900), [False] * 300 + [True] * 600)
    metrics = run_on(
        model,
        [*short, long],
        tmp_path / "work",
        tokens_per_step=900,
        max_row_tokens=900,
        micro_tokens=100,
        steps=None,
        epochs=2.0,
    )
    assert metrics["steps"] == 4
    assert is_sound(model)


def test_rows_of_one_token_teach_nothing_and_do_no_harm(tiny_folder: Path, tmp_path: Path) -> None:
    one, other = fresh(tiny_folder), fresh(tiny_folder)
    rows = encode_rows(chats(3), one.chat, 80).encoded
    single = RenderedChat([5], [True])
    run_on(one, rows, tmp_path / "one" / "work", steps=3, tokens_per_step=500)
    run_on(other, [single, *rows, single], tmp_path / "other" / "work", steps=3, tokens_per_step=500)
    assert losses(tmp_path / "one" / "work") == pytest.approx(losses(tmp_path / "other" / "work"), abs=1e-5)
    untouched = fresh(tiny_folder)
    metrics = run_on(untouched, [single], tmp_path / "none" / "work", steps=2, optim=OptimConfig())
    assert metrics["last_loss"] == 0.0
    assert all(torch.equal(t, checkpoint(fresh(tiny_folder))[name]) for name, t in checkpoint(untouched).items())


@pytest.mark.parametrize("keep", ["last", "best"])
def test_without_validation_rows_the_last_weights_are_kept(tiny_folder: Path, tmp_path: Path, keep: Any) -> None:
    model = fresh(tiny_folder)
    rows = encode_rows(chats(5), model.chat, 80).encoded
    metrics = run_on(model, rows, tmp_path / "work", keep=keep, patience=1, validate_every=1)
    assert (metrics["steps"], metrics["validation_loss"], metrics["best_step"]) == (10, None, None)
    assert metrics["last_loss"] < metrics["first_loss"]
    ended = fresh(tiny_folder)
    run_on(ended, rows, tmp_path / "other" / "work", rows, max_validation_rows=0)
    assert torch.equal(our_logits(ended, [1, 2, 3]), our_logits(model, [1, 2, 3]))


def test_one_row_is_learnt_by_heart(tiny_folder: Path, tmp_path: Path) -> None:
    model = fresh(tiny_folder)
    rows = encode_rows(chats(1), model.chat, 80).encoded
    metrics = run_on(model, rows, tmp_path / "work", rows, steps=16, optim=OptimConfig(learning_rate=3e-2))
    assert metrics["last_loss"] < 0.05
    assert metrics["validation_loss"] < 0.05


@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 3), (0.01, 1), (1.0, 6), (2.5, 15)])
def test_parts_of_an_epoch_are_rounded_to_steps_of_which_there_is_one_at_least(
    tiny_folder: Path, tmp_path: Path, epochs: float, steps: int
) -> None:
    model = fresh(tiny_folder)
    rows = encode_rows(chats(6), model.chat, 80).encoded
    assert RowBatches(rows, lambda row: len(row.ids), seed=3, tokens_per_step=80).per_epoch == 6
    assert run_on(model, rows, tmp_path / "work", steps=None, epochs=epochs, tokens_per_step=80)["steps"] == steps


def test_more_rows_a_step_than_there_are_is_all_of_them() -> None:
    batches = RowBatches([7, 8, 9], lambda _: 4, seed=0, rows_per_step=100, micro_tokens=8)
    assert batches.per_epoch == 1
    assert all(sorted(row for part in batches.at(step) for row in part) == [7, 8, 9] for step in range(5))
    assert all(sum(4 for _ in part) <= 8 for part in batches.at(0))


def test_rows_in_other_scripts_are_learnt(tiny_folder: Path, tmp_path: Path) -> None:
    """Bytes of which one character has several, signs joined of many, right-to-left text, and a lone surrogate's
    stand-in."""
    model = fresh(tiny_folder)
    pairs = [("红色连衣裙", "一件红色的羊毛连衣裙。"), ("👩‍👩‍👧 🧥?", "Größe 42 – schön!"), ("فستان", "أحمر\ufffd")]
    rows = [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]}
        for ask, answer in pairs
    ]
    encoded = encode_rows(rows, model.chat, 200).encoded
    for row, (_, answer) in zip(encoded, pairs, strict=True):
        learnt = [i for i, flag in zip(row.ids, row.is_answer, strict=True) if flag]
        assert model.chat.tokenizer.decode(learnt) == answer
    metrics = run_on(
        model, encoded, tmp_path / "work", steps=16, tokens_per_step=600, optim=OptimConfig(learning_rate=3e-2)
    )
    assert metrics["last_loss"] < 0.1 * metrics["first_loss"]
