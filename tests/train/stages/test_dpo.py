"""Learning from compared answers: what transformers and trl say of the same weights, and that it learns and resumes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from danlu.core.errors import ConfigError
from danlu.models.save import save_model
from danlu.text.chat import RenderedChat
from danlu.train.comparisons import Dpo, Ipo, Kto, Orpo, Simpo
from danlu.train.lora import LoraConfig
from danlu.train.merge import merge_lora
from danlu.train.optim import OptimConfig
from danlu.train.preferences import Judged, Pair, encode_judged, encode_pairs
from danlu.train.stages.dpo import DpoConfig, train

from ...models.peer import save_llama
from ..chats import Stop, fresh
from ..losses import trl_peer as trl
from ..opinions import CONFIG, job_in, learn, pairs

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"dpo": Dpo()},
    "rpo": {"dpo": Dpo(nll_weight=0.5, label_smoothing=0.1)},
    "ipo": {"ipo": Ipo(beta=0.5)},
    "orpo": {"orpo": Orpo()},
    "simpo": {"simpo": Simpo()},
    "kto": {"kto": Kto(undesirable_weight=1.2)},
}


Learnt = tuple[Any, Any, list[Pair], dict[str, Any]]


def curve(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


@torch.no_grad()
def their_logprobs(peer: Any, answers: Sequence[RenderedChat]) -> tuple[Tensor, list[int]]:
    """What transformers says of the supervised tokens of rows, one row at a time, and how many each row has."""
    found: list[Tensor] = []
    for answer in answers:
        logprobs = peer(torch.tensor([answer.ids])).logits[0].log_softmax(-1)
        places = [i for i, learnt in enumerate(answer.is_answer) if learnt]
        found.append(torch.stack([logprobs[i - 1, answer.ids[i]] for i in places]))
    return torch.cat(found), [len(part) for part in found]


# ---- trl and transformers --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    """The reference and what DPO made of it, both in transformers; the validation rows and what we say of them."""
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("learnt")
    reference = save_llama(folder / "base")
    model = fresh(folder / "base")
    metrics = learn(model, folder)
    watched = encode_pairs(pairs(20), model.chat, 80).items[:4]
    merge_lora(model)
    save_model(model, folder / "merged")
    return reference, LlamaForCausalLM.from_pretrained(folder / "merged").eval(), watched, metrics


def test_the_loss_of_a_trained_model_is_what_trl_says_of_it(learnt: Learnt) -> None:
    reference, policy, watched, metrics = learnt
    chosen, rejected = [pair.chosen for pair in watched], [pair.rejected for pair in watched]
    said = [their_logprobs(policy, answers) for answers in (chosen, rejected)]
    before = []
    for answers in (chosen, rejected):
        tokens, counts = their_logprobs(reference, answers)
        before.append(torch.stack([part.sum() for part in tokens.split(counts)]))
    loss, theirs = trl.dpo(*said[0], *said[1], before[0], before[1], {"sigmoid": 1.0}, 0.1)
    assert metrics["validation"]["validation_loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert metrics["validation"]["validation_rewards/margin"] == pytest.approx(theirs["rewards/margins"], rel=1e-3)
    assert metrics["validation"]["validation_rewards/accuracy"] == theirs["rewards/accuracies"]


def test_it_learns_what_people_like(learnt: Learnt) -> None:
    metrics = learnt[3]
    assert metrics["first_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert metrics["validation"]["validation_loss"] < 0.5
    assert metrics["validation"]["validation_rewards/accuracy"] == 1.0
    assert metrics["train_rows"] == 16


# ---- every method ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_widens_the_margin(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    metrics = learn(fresh(tiny_folder), tmp_path, dataclasses.replace(CONFIG, **METHODS[name]))
    lines = [line for line in curve(tmp_path) if "loss" in line]
    margins = [line["rewards/margin"] for line in lines]
    assert metrics["last_loss"] < metrics["first_loss"]
    assert sum(margins[-3:]) > sum(margins[:3])
    assert all({"rewards/accuracy", "entropy", "token_accuracy"} <= line.keys() for line in lines)
    if name not in ("orpo", "simpo"):
        assert lines[0]["rewards/margin"] == pytest.approx(0.0, abs=1e-4), "the policy begins as its reference"


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_all_weights_can_learn_while_the_reference_stays(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    config = dataclasses.replace(CONFIG, lora=None, optim=OptimConfig(learning_rate=1e-3), **METHODS[name])
    metrics = learn(fresh(tiny_folder), tmp_path, config)
    lines = [line for line in curve(tmp_path) if "loss" in line]
    assert lines[0]["rewards/margin"] == pytest.approx(0.0, abs=1e-4)
    assert metrics["last_loss"] < metrics["first_loss"]
    assert metrics["trainable_share"] == 1.0


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_change_nothing(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    """KTO's baseline is one number for the whole step, so its micro-batches agree too."""
    curves = []
    for micro_tokens in (None, 1):
        config = dataclasses.replace(CONFIG, steps=4, micro_tokens=micro_tokens, **METHODS[name])
        learn(fresh(tiny_folder), tmp_path / str(micro_tokens), config)
        curves.append(curve(tmp_path / str(micro_tokens)))
    for one, other in zip(*curves, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - {"rewards/accuracy"}:  # of equals it is a matter of rounding
            assert one[key] == pytest.approx(other[key], rel=1e-3, abs=2e-5), key


class Crash(Exception):
    """The process is gone."""


@pytest.mark.parametrize("is_adapter", [True, False])
@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_a_run_that_crashed_twice_ends_as_if_it_had_not(
    tiny_folder: Path, tmp_path: Path, name: str, is_adapter: bool
) -> None:
    config = dataclasses.replace(CONFIG, **METHODS[name])
    if not is_adapter:
        config = dataclasses.replace(config, lora=None, optim=OptimConfig(learning_rate=1e-4))
    learn(fresh(tiny_folder), tmp_path / "whole", config)
    for stop in (3, 6):
        with pytest.raises(Crash):
            learn(fresh(tiny_folder), tmp_path / "torn", config, display=Stop(stop, Crash()))
    learn(fresh(tiny_folder), tmp_path / "torn", config)
    assert curve(tmp_path / "torn") == curve(tmp_path / "whole")


def test_the_baseline_of_kto_is_the_drift_on_answers_to_other_prompts(tmp_path: Path) -> None:
    """One step with a huge rate, then trl's loss of the weights that came out, on the validation rows."""
    from transformers import LlamaForCausalLM

    reference = save_llama(tmp_path / "base")
    model = fresh(tmp_path / "base")
    config = dataclasses.replace(CONFIG, steps=3, kto=Kto(desirable_weight=1.5))
    rows: list[Judged] = encode_judged(pairs(6), model.chat, 80).items
    metrics = train(model, rows[4:], rows[:4], config, job_in(tmp_path))
    merge_lora(model)
    save_model(model, tmp_path / "merged")
    policy = LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    answers, mismatched = [row.answer for row in rows[:4]], [row.mismatched for row in rows[:4]]

    def sums(peer: Any, answers: Sequence[RenderedChat]) -> Tensor:
        tokens, counts = their_logprobs(peer, answers)
        return torch.stack([part.sum() for part in tokens.split(counts)])

    loss = trl.kto(
        *their_logprobs(policy, answers),
        torch.tensor([row.is_desirable for row in rows[:4]]),
        sums(reference, answers),
        sums(policy, mismatched),
        sums(reference, mismatched),
        beta=0.1,
        desirable=1.5,
        undesirable=1.0,
    )
    assert metrics["validation"]["validation_loss"] == pytest.approx(loss.item(), rel=1e-4)


# ---- settings --------------------------------------------------------------------------------------------------------


def test_two_methods_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"dpo and kto are both given\. Give one method"):
        DpoConfig(dpo=Dpo(), kto=Kto())
    assert isinstance(DpoConfig().method, Dpo)


def test_a_batch_needs_a_row() -> None:
    with pytest.raises(ConfigError, match=r"rows_per_step is 0\. Use 1 or more"):
        DpoConfig(rows_per_step=0)
    assert DpoConfig(lora=LoraConfig(rank=2)).method.needs_reference
