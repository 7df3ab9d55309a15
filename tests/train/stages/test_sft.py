import dataclasses
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from danlu.core.errors import ConfigError, DataError, TrainError
from danlu.core.events import Events
from danlu.core.records import GenerateOptions
from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel
from danlu.models.model import Model
from danlu.text.chat import ChatFormat
from danlu.train.adapter import lora_state, save_adapter
from danlu.train.checkpoint import load_together
from danlu.train.lora import LoraConfig
from danlu.train.optim import OptimConfig, rate_at
from danlu.train.progress import MAX_SKIPPED_STEPS
from danlu.train.run import Job
from danlu.train.stages.sft import SftConfig, encode_rows, finetune
from danlu.train.world import World

from ...models.peer import save_llama
from ..chats import CONFIG, Stop, chats, fresh, train
from ..test_loss import peer_loss


def curve(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work.parent / "curve.jsonl").read_text().splitlines()]


def adapter_bytes(model: Model, folder: Path) -> bytes:
    save_adapter(model, folder, CONFIG.lora, base="x")
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[dict[str, Any]]]:
    """The adapter and the curve of a run that nothing stopped."""
    work = tmp_path_factory.mktemp("whole") / "work"
    model = fresh(tiny_folder)
    train(model, work)
    return adapter_bytes(model, work.parent / "adapter"), curve(work)


# ---- learning --------------------------------------------------------------------------------------------------------


def test_four_rows_are_learnt_by_heart(tiny_folder: Path, tmp_path: Path) -> None:
    model = fresh(tiny_folder)
    rows = chats(4)
    optim = OptimConfig(learning_rate=1e-2)
    config = SftConfig(
        steps=80, tokens_per_step=512, max_row_tokens=128, lora=LoraConfig(rank=16, alpha=32.0), optim=optim
    )
    encoded = encode_rows(rows, model.chat, 128).encoded
    job = Job(work=tmp_path / "w", log_path=tmp_path / "curve.jsonl", events=Events(), seed=0)
    metrics = finetune(model, encoded, [], config, job)
    assert metrics["first_loss"] > 3
    assert metrics["last_loss"] < 0.25
    answers = LoadedModel(model).generate([row["messages"][:1] for row in rows], GenerateOptions(max_tokens=60))
    assert [answer.text for answer in answers] == [row["messages"][1]["content"] for row in rows]
    assert {answer.finish_reason for answer in answers} == {"stop"}


def test_the_curve_holds_every_step_with_its_rate_and_the_validation_losses(
    whole: tuple[bytes, list[dict[str, Any]]],
) -> None:
    lines = whole[1]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, CONFIG.steps + 1))
    rates = [rate_at(step, CONFIG.steps, CONFIG.optim) for step in range(CONFIG.steps)]
    assert [line["lr"] for line in steps] == pytest.approx(rates, abs=1e-6)
    assert [line["step"] for line in lines if "validation_loss" in line] == [10, 20]
    assert steps[-1]["loss"] < 0.8 * steps[0]["loss"]


def test_the_metrics_say_what_was_trained(tiny_folder: Path, tmp_path: Path) -> None:
    model = fresh(tiny_folder)
    base = model.num_parameters()
    metrics = train(model, tmp_path / "work")
    lines = curve(tmp_path / "work")
    size = sum(tensor.numel() for tensor in lora_state(model).values())
    assert metrics["trainable_parameters"] == size
    assert metrics["trainable_share"] == pytest.approx(size / base)
    assert (metrics["steps"], metrics["train_rows"], metrics["skipped_steps"]) == (20, 24, 0)
    assert 0.5 < metrics["packing_fill"] <= 1.0
    losses = [line["loss"] for line in lines if "loss" in line]
    assert (metrics["first_loss"], metrics["last_loss"]) == (losses[0], losses[-1])
    assert metrics["validation_loss"] == [line["validation_loss"] for line in lines if "validation_loss" in line][-1]
    assert metrics["train_tokens_per_s"] > 0


def test_the_first_validation_loss_is_that_of_transformers(tmp_path: Path) -> None:
    peer = save_llama(tmp_path / "m")
    model = fresh(tmp_path / "m")
    config = dataclasses.replace(CONFIG, steps=1, optim=OptimConfig(learning_rate=1e-12))
    metrics = train(model, tmp_path / "work", config)
    rows = encode_rows(chats(28), model.chat, 80).encoded
    with torch.no_grad():
        assert metrics["validation_loss"] == pytest.approx(float(peer_loss(peer, rows[:4])), rel=1e-5)


def test_the_seed_decides_everything(tiny_folder: Path, tmp_path: Path, whole: tuple[bytes, Any]) -> None:
    model = fresh(tiny_folder)
    torch.manual_seed(123)  # what happened before does not matter
    train(model, tmp_path / "a" / "work")
    assert adapter_bytes(model, tmp_path / "a" / "adapter") == whole[0]
    other = fresh(tiny_folder)
    train(other, tmp_path / "b" / "work", seed=4)
    assert adapter_bytes(other, tmp_path / "b" / "adapter") != whole[0]


def test_a_bf16_base_trains_almost_as_well(
    tiny_folder: Path, tmp_path: Path, whole: tuple[bytes, list[dict[str, Any]]]
) -> None:
    model = load_model(tiny_folder, precision="bf16")
    metrics = train(model, tmp_path / "work")
    exact = [line for line in whole[1] if "loss" in line]
    assert metrics["first_loss"] == pytest.approx(exact[0]["loss"], rel=0.02)
    assert metrics["last_loss"] == pytest.approx(exact[-1]["loss"], rel=0.1)
    assert all(tensor.dtype == torch.float32 for tensor in lora_state(model).values())


# ---- stopping and going on -------------------------------------------------------------------------------------------


class Crash(Exception):
    """The process is gone."""


@pytest.mark.parametrize("stops", [[1], [5], [13], [20], [7, 8], [3, 12, 17]], ids=str)
def test_a_run_that_crashed_ends_as_if_it_had_not(
    tiny_folder: Path, tmp_path: Path, whole: tuple[bytes, list[dict[str, Any]]], stops: list[int]
) -> None:
    for stop in stops:
        with pytest.raises(Crash):
            train(fresh(tiny_folder), tmp_path / "work", display=Stop(stop, Crash()))
    model = fresh(tiny_folder)
    metrics = train(model, tmp_path / "work")
    assert adapter_bytes(model, tmp_path / "adapter") == whole[0]
    assert curve(tmp_path / "work") == whole[1]
    assert metrics["first_loss"] == whole[1][0]["loss"]


def test_a_damaged_newest_checkpoint_costs_only_its_steps(
    tiny_folder: Path, tmp_path: Path, whole: tuple[bytes, list[dict[str, Any]]]
) -> None:
    with pytest.raises(Crash):
        train(fresh(tiny_folder), tmp_path / "work", display=Stop(18, Crash()))
    newest = sorted((tmp_path / "work").glob("step-*"))[-1]
    assert newest.name == "step-00000015"
    (path,) = newest.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    model = fresh(tiny_folder)
    stop = Stop(-1, Crash())
    train(model, tmp_path / "work", display=stop)
    assert stop.said == ["Going on after step 10."]
    assert adapter_bytes(model, tmp_path / "adapter") == whole[0]
    assert curve(tmp_path / "work") == whole[1]


def test_ctrl_c_saves_where_it_is_and_says_how_to_go_on(
    tiny_folder: Path, tmp_path: Path, whole: tuple[bytes, list[dict[str, Any]]]
) -> None:
    stop = Stop(8, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(fresh(tiny_folder), tmp_path / "work", display=stop)
    assert stop.said == ["Saved after step 8; the same command goes on from there."]
    assert sorted(path.name for path in (tmp_path / "work").glob("step-*")) == ["step-00000005", "step-00000008"]
    model = fresh(tiny_folder)
    again = Stop(-1, Crash())
    train(model, tmp_path / "work", display=again)
    assert again.said == ["Going on after step 8."]
    assert adapter_bytes(model, tmp_path / "adapter") == whole[0]


def test_a_finished_run_is_not_trained_again(tiny_folder: Path, tmp_path: Path, whole: tuple[bytes, Any]) -> None:
    first = train(fresh(tiny_folder), tmp_path / "work")
    model = fresh(tiny_folder)
    again = train(model, tmp_path / "work", display=Stop(1, Crash()))
    assert adapter_bytes(model, tmp_path / "adapter") == whole[0]
    assert {n: v for n, v in again.items() if "per_s" not in n} == {n: v for n, v in first.items() if "per_s" not in n}


PROCESS = """
import os, signal, sys
import torch
from pathlib import Path
from tests.train.chats import fresh, train
from danlu.core.events import Silent
from danlu.train.adapter import save_adapter
from tests.train.chats import CONFIG

model_folder, work, out, kill = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

class Display(Silent):
    def update(self, done, metrics):
        if kill == f"after {done}" and metrics:
            die()

if kill.startswith("saving"):  # between writing a checkpoint and giving it its name
    replace = os.replace
    os.replace = lambda a, b: die() if str(b).endswith(kill.split()[1]) else replace(a, b)
torch.set_num_threads(1)
model = fresh(model_folder)
train(model, work, display=Display())
save_adapter(model, out, CONFIG.lora, base="x")
"""


def test_killed_twice_it_ends_with_the_same_bytes(
    root: Path, tiny_folder: Path, tmp_path: Path, whole: tuple[bytes, list[dict[str, Any]]]
) -> None:
    """kill -9 in the middle of a step, then in the middle of writing a checkpoint."""
    work, out = tmp_path / "work", tmp_path / "adapter"

    def run(kill: str) -> int:
        command = [sys.executable, "-c", PROCESS, str(tiny_folder), str(work), str(out), kill]
        return subprocess.run(command, cwd=root, env={"PYTHONPATH": str(root), "PATH": ""}, check=False).returncode

    assert run("after 7") == -9
    assert run("saving step-00000015") == -9
    assert sorted(path.name for path in work.glob("step-*")) == ["step-00000005", "step-00000010"]
    assert run("never") == 0
    assert (out / "adapter_model.safetensors").read_bytes() == whole[0]
    assert curve(work) == whole[1]


# ---- gradients that are no numbers -----------------------------------------------------------------------------------


def poison(model: Model, calls: set[int]) -> None:
    """Make the head's output NaN in these calls of it (counted from 1)."""
    counter = itertools.count(1)
    model.network.head.register_forward_hook(lambda _, __, out: out * float("nan") if next(counter) in calls else out)


def test_a_step_without_a_gradient_is_skipped_and_counted(tiny_folder: Path, tmp_path: Path) -> None:
    model = fresh(tiny_folder)
    poison(model, {2, 4})
    metrics = train(model, tmp_path / "work")
    assert metrics["skipped_steps"] == 2
    assert metrics["last_loss"] < metrics["first_loss"]
    assert all(torch.isfinite(tensor).all() for tensor in lora_state(model).values())


def test_a_skipped_step_changes_no_weight(tiny_folder: Path, tmp_path: Path) -> None:
    one, two = fresh(tiny_folder), fresh(tiny_folder)
    for model, bad in ((one, {2, 3}), (two, {2, 3, 4})):
        poison(model, bad)
    config = dataclasses.replace(CONFIG, steps=4, validate_every=100)
    with pytest.raises(Crash):
        train(one, tmp_path / "one" / "work", config, display=Stop(3, Crash()))
    with pytest.raises(Crash):
        train(two, tmp_path / "two" / "work", config, display=Stop(4, Crash()))
    assert adapter_bytes(one, tmp_path / "a") == adapter_bytes(two, tmp_path / "b")


def test_training_stops_when_gradients_stay_broken_and_keeps_the_last_good_checkpoint(
    tiny_folder: Path, tmp_path: Path
) -> None:
    model = fresh(tiny_folder)
    poison(model, set(range(8, 100)))
    with pytest.raises(
        TrainError,
        match=r"The gradient was not a number 5 steps in a row \(up to step 12\)\. Lower optim\.learning_rate; "
        r"the last good checkpoint is kept",
    ):
        train(model, tmp_path / "work", dataclasses.replace(CONFIG, validate_every=100))
    assert MAX_SKIPPED_STEPS == 5
    kept = load_together(tmp_path / "work", World())
    assert kept is not None
    assert all(torch.isfinite(tensor).all() for tensor in kept.tensors.values())


def test_the_curve_of_a_run_with_a_skipped_step_is_still_json(tiny_folder: Path, tmp_path: Path) -> None:
    model = fresh(tiny_folder)
    poison(model, {3})
    metrics = train(model, tmp_path / "work", dataclasses.replace(CONFIG, steps=3, validate_every=100))

    def refuse(text: str) -> float:
        raise AssertionError(f"{text} is not JSON")

    for line in (tmp_path / "curve.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    assert metrics["last_loss"] is None or math.isfinite(metrics["last_loss"])


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chat(tiny_folder: Path) -> ChatFormat:
    return fresh(tiny_folder).chat


def say(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_rows_that_cannot_be_learnt_are_left_out_and_counted(chat: ChatFormat) -> None:
    rows = [
        say(("user", "ask"), ("assistant", "answer")),
        say(("user", "ask " * 200), ("assistant", "answer")),
        say(("user", "only a question")),
        say(("user", "ask"), ("assistant", "more"), ("user", "again"), ("assistant", "done")),
    ]
    found = encode_rows(rows, chat, 100)
    assert len(found.encoded) == 2
    assert found.left_out == {"too_long": 1, "no_answer": 1}
    (end,) = chat.tokenizer.end_ids
    learnt = [i for i, flag in zip(found.encoded[1].ids, found.encoded[1].is_answer, strict=True) if flag]
    assert learnt == [*chat.tokenizer.encode("more"), end, *chat.tokenizer.encode("done"), end]
    assert encode_rows(rows[:1], chat, 100).left_out == {}


def test_a_row_without_messages_is_refused(chat: ChatFormat) -> None:
    with pytest.raises(DataError, match="A row has messages None"):
        encode_rows([{"text": "x"}], chat, 100)


def test_data_without_a_row_to_learn_is_refused(chat: ChatFormat) -> None:
    rows = [say(("user", "ask " * 200), ("assistant", "x")), say(("user", "x")), say(("user", "x"))]
    with pytest.raises(
        TrainError,
        match=r"No row can be trained on: 1 are longer than 100 tokens, 2 have no assistant answer\. Look at the data",
    ):
        encode_rows(rows, chat, 100)


def test_a_template_that_never_teaches_to_stop_is_refused(chat: ChatFormat) -> None:
    endless = ChatFormat(chat.tokenizer, "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    with pytest.raises(
        TrainError, match=r"No answer ends with the token that ends answers, .*the end token is <\|im_end\|>"
    ):
        encode_rows(chats(3), endless, 100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, r"steps is 0\. Use 1 or more"),
        ({"save_every": 0}, r"save_every is 0\. Use 1 or more"),
        ({"validate_every": -1}, r"validate_every is -1\. Use 1 or more"),
        ({"tokens_per_step": 100, "max_row_tokens": 200}, r"max_row_tokens 200 is more than tokens_per_step 100\."),
    ],
)
def test_settings_that_cannot_train_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SftConfig(**changes)
