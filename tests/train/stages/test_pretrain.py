"""Pre-training: losses that fall, runs that go on, weights that load elsewhere."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from danlu.core.errors import ConfigError, DataError
from danlu.data.loader import LoaderConfig, TokenLoader, TokenSource
from danlu.data.shards import TokenShards
from danlu.models.load import load_model
from danlu.models.save import save_model
from danlu.train.held_out import held_out
from danlu.train.initial import InitialConfig
from danlu.train.lora import LoraConfig
from danlu.train.objectives.denoise import DenoiseConfig
from danlu.train.objectives.masked import MaskedConfig
from danlu.train.objectives.spans import SpansConfig
from danlu.train.optim import OptimConfig, rate_at
from danlu.train.stages.pretrain import PretrainConfig

from ..chats import Stop
from ..corpus import CONFIG, fresh, train, write_corpus

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_corpus(folder / "train", 60)
    write_corpus(folder / "validation", 12, first=60)
    return folder


def curve(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work.parent / "curve.jsonl").read_text().splitlines()]


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def whole(
    shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], dict[str, Any]]:
    """Weights, curve and metrics of a run that nothing stopped."""
    work = tmp_path_factory.mktemp("whole") / "work"
    model = fresh()
    metrics = train(model, shards, work)
    return state(model), curve(work), metrics


# ---- learning --------------------------------------------------------------------------------------------------------


def test_a_new_model_knows_nothing_and_learns(whole: tuple[Any, list[dict[str, Any]], dict[str, Any]]) -> None:
    _, lines, metrics = whole
    assert metrics["first_loss"] == pytest.approx(math.log(448), rel=0.02), "as many tokens, all as likely"
    assert metrics["last_loss"] < 0.8 * metrics["first_loss"]
    assert [line["step"] for line in lines if "validation_loss" in line] == [6, 12]
    assert metrics["steps"] == 12


def test_held_out_documents_are_measured_in_bits_per_byte(whole: tuple[Any, Any, dict[str, Any]], shards: Path) -> None:
    metrics, validation = whole[2], TokenShards(shards / "validation")
    nats = metrics["held_out_loss"] * validation.num_tokens
    assert metrics["held_out_bits_per_byte"] == pytest.approx(nats / math.log(2) / validation.index.text_bytes)
    assert metrics["held_out_perplexity"] == pytest.approx(math.exp(metrics["held_out_loss"]))


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bert", {"masked": MaskedConfig()}),
        ("bert", {"masked": MaskedConfig(whole_words=True)}),
        ("t5", {"spans": SpansConfig()}),
        ("bart", {"denoise": DenoiseConfig()}),
        ("gpt2", {}),
        ("qwen3", {}),
    ],
    ids=["masked", "whole_words", "spans", "denoise", "gpt2", "qwen3"],
)
def test_every_kind_of_model_learns_its_objective(
    shards: Path, tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    model = fresh(family, spare_ids=30)
    config = dataclasses.replace(CONFIG, steps=24, tokens_per_step=384, save_every=100, validate_every=12, **options)
    metrics = train(model, shards, tmp_path / "work", config)
    assert metrics["last_loss"] < 0.85 * metrics["first_loss"]
    validation = [line["validation_loss"] for line in curve(tmp_path / "work") if "validation_loss" in line]
    assert validation[-1] < validation[0]
    save_model(model, tmp_path / "m")
    again = load_model(tmp_path / "m", precision="fp32")
    assert equal(state(model), state(again))


@pytest.mark.parametrize("documents", ["packed", "chunked", "joined"])
def test_losses_fall_however_documents_become_sequences(shards: Path, tmp_path: Path, documents: Any) -> None:
    metrics = train(fresh(), shards, tmp_path / "work", dataclasses.replace(CONFIG, documents=documents))
    assert metrics["last_loss"] < 0.8 * metrics["first_loss"]


def test_the_z_loss_is_told_apart(shards: Path, tmp_path: Path) -> None:
    train(fresh(), shards, tmp_path / "work", dataclasses.replace(CONFIG, steps=2, z_loss=1e-3))
    first = curve(tmp_path / "work")[0]
    assert first["z_loss"] == pytest.approx(1e-3 * math.log(448) ** 2, rel=0.02)
    assert first["loss"] == pytest.approx(math.log(448) + first["z_loss"], rel=0.02)


def test_a_bf16_run_follows_the_fp32_one(
    shards: Path, tmp_path: Path, whole: tuple[Any, list[dict[str, Any]], dict[str, Any]]
) -> None:
    """fp32 masters keep the small updates that bf16 weights would lose."""
    model = fresh()
    model.activation_dtype = torch.bfloat16
    train(model, shards, tmp_path / "work")
    exact, half = ([line["loss"] for line in lines if "loss" in line] for lines in (whole[1], curve(tmp_path / "work")))
    assert half == pytest.approx(exact, rel=0.01)
    assert half != exact
    assert {tensor.dtype for tensor in model.network.state_dict().values()} == {torch.float32}
    assert model.precision == "fp32"


def test_twenty_steps_are_those_of_a_plain_torch_loop(shards: Path, tmp_path: Path) -> None:
    """The same shards, order and schedule, with transformers' model, torch's loss and torch's AdamW."""
    model = fresh()
    save_model(model, tmp_path / "m")
    peer: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    config = dataclasses.replace(
        CONFIG, steps=20, documents="joined", micro_tokens=96, optim=OptimConfig(learning_rate=3e-3)
    )
    train(model, shards, tmp_path / "work", config)
    ours = [line["loss"] for line in curve(tmp_path / "work") if "loss" in line]

    loader = TokenLoader(
        [TokenSource(shards=TokenShards(shards / "train"))],
        LoaderConfig(sequence_length=48, sequences_per_batch=4, documents="joined"),
        seed=3,
    )
    optimizer = torch.optim.AdamW(peer.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0)
    theirs: list[float] = []
    for step in range(20):
        ids = torch.from_numpy(np.stack([rows.ids for rows in loader.at(step)[0]]))
        logits = peer(input_ids=ids).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, 20, config.optim)
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(float(loss.detach()))
    assert ours == pytest.approx(theirs, rel=1e-4)
    merged = dict(peer.named_parameters())["model.embed_tokens.weight"]
    torch.testing.assert_close(model.network.state_dict()["embedding.tokens.weight"], merged, rtol=1e-3, atol=2e-4)


def test_an_adapter_learns_and_the_base_stays(shards: Path, tmp_path: Path) -> None:
    """Further pre-training of a model with LoRA."""
    model = fresh(initial=InitialConfig(spread=0.3))
    before = model.network.state_dict()["stack.blocks.0.mixer.inner.qkv.weight"].clone()
    metrics = train(model, shards, tmp_path / "work", dataclasses.replace(CONFIG, lora=LoraConfig(rank=4)))
    assert metrics["last_loss"] < metrics["first_loss"]
    assert torch.equal(model.network.state_dict()["stack.blocks.0.mixer.inner.qkv.base.weight"], before)


# ---- splitting, stopping and going on --------------------------------------------------------------------------------


def test_micro_batches_change_no_loss(
    shards: Path, tmp_path: Path, whole: tuple[Any, list[dict[str, Any]], dict[str, Any]]
) -> None:
    train(fresh(), shards, tmp_path / "work", dataclasses.replace(CONFIG, micro_tokens=48))
    for line, other in zip(curve(tmp_path / "work"), whole[1], strict=True):
        assert line == pytest.approx(other, rel=1e-3)


class Crash(Exception):
    """The process is gone."""


def test_a_run_that_crashed_twice_ends_as_if_it_had_not(
    shards: Path, tmp_path: Path, whole: tuple[dict[str, torch.Tensor], list[dict[str, Any]], dict[str, Any]]
) -> None:
    for stop in (3, 9):
        with pytest.raises(Crash):
            train(fresh(), shards, tmp_path / "work", display=Stop(stop, Crash()))
    model = fresh()
    metrics = train(model, shards, tmp_path / "work")
    assert equal(state(model), whole[0])
    assert curve(tmp_path / "work") == whole[1]
    assert metrics["held_out_loss"] == whole[2]["held_out_loss"]


PROCESS = """
import os, signal, sys
from pathlib import Path
import torch
from danlu.core.events import Silent
from danlu.models.save import save_model
from tests.train.corpus import fresh, train

class Display(Silent):
    def update(self, done, metrics):
        if done == int(sys.argv[4]) and metrics:
            os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
model = fresh()
train(model, Path(sys.argv[1]), Path(sys.argv[2]), display=Display())
save_model(model, Path(sys.argv[3]))
"""


def test_killed_it_ends_with_the_same_weights(
    root: Path, shards: Path, tmp_path: Path, whole: tuple[dict[str, torch.Tensor], Any, Any]
) -> None:
    """kill -9 after step 7."""

    def run(kill: int) -> int:
        command = [sys.executable, "-c", PROCESS, str(shards), str(tmp_path / "work"), str(tmp_path / "m"), str(kill)]
        return subprocess.run(command, cwd=root, env={"PYTHONPATH": str(root), "PATH": ""}, check=False).returncode

    assert run(7) == -9
    assert sorted(path.name for path in (tmp_path / "work").glob("step-*")) == ["step-00000004"]
    assert run(0) == 0
    assert equal(state(load_model(tmp_path / "m", precision="fp32")), whole[0])


# ---- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "options", "text"),
    [
        (
            "llama",
            {"masked": MaskedConfig()},
            r"This model is a decoder; hidden tokens \(masked\) are .* by an encoder\. Leave",
        ),
        ("bert", {}, r"This model is an encoder; next tokens are learnt by a decoder\. Use masked: \{\}\."),
        (
            "t5",
            {"masked": MaskedConfig()},
            r"an encoder-decoder; hidden tokens \(masked\) .*\. Use spans: \{\} or denoise",
        ),
    ],
)
def test_an_objective_of_another_kind_of_model_is_refused(
    shards: Path, tmp_path: Path, family: str, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        train(fresh(family, spare_ids=9), shards, tmp_path / "work", dataclasses.replace(CONFIG, **options))


def test_a_tokenizer_without_a_mask_token_cannot_hide(shards: Path, tmp_path: Path) -> None:
    model = fresh("bert")
    model.chat.tokenizer.roles.pop("mask_token")
    with pytest.raises(ConfigError, match=r"The tokenizer has no mask token\. Add <mask> to its special_tokens"):
        train(model, shards, tmp_path / "work", dataclasses.replace(CONFIG, masked=MaskedConfig()))


def test_a_model_without_a_language_head_is_refused(shards: Path, tmp_path: Path) -> None:
    model = fresh()
    model.network.head = None
    with pytest.raises(ConfigError, match=r"This model cannot be pre-trained: it has no head\. Give a language model"):
        train(model, shards, tmp_path / "work")


def test_ids_that_the_model_does_not_know_are_refused(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_corpus(tmp_path / split, 9, vocabulary_size=9000)
    with pytest.raises(DataError, match=r"The shards have ids up to 8999, the model knows 448\. Tokenize with"):
        train(fresh(), tmp_path, tmp_path / "work")


def test_sequences_longer_than_the_context_are_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sequence_length is 100, the model reads 64 tokens\. Use shorter"):
        train(fresh(), shards, tmp_path / "work", dataclasses.replace(CONFIG, sequence_length=100))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sequence_length": 3}, r"sequence_length is 3\. Use 4 or more\."),
        ({"sequence_length": 64, "tokens_per_step": 9}, r"tokens_per_step 9 is less than sequence_length 64\."),
        ({"z_loss": -1.0}, r"z_loss is -1\.0\. Use 0 or a small weight such as 1e-4\."),
        ({"masked": MaskedConfig(), "spans": SpansConfig()}, r"masked and spans are given together\. Give one"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        PretrainConfig(**options)


# ---- held-out documents ----------------------------------------------------------------------------------------------


def test_long_documents_are_read_in_windows_and_every_token_is_told_once(shards: Path) -> None:
    """With rows as long as the longest document there are no windows; with shorter ones less is seen, not less told."""
    network, validation = fresh(initial=InitialConfig(spread=0.3)).network, TokenShards(shards / "validation")
    whole = held_out(network, validation, row_tokens=500, separator=0)
    assert whole.tokens == validation.num_tokens
    assert whole.text_bytes == validation.index.text_bytes
    assert held_out(network, validation, row_tokens=16, separator=0).tokens == whole.tokens
    alone = held_out(network, validation, row_tokens=500, separator=None)
    assert alone.tokens == validation.num_tokens - validation.num_documents
    expected = 0.0
    for document in validation.documents():
        ids = torch.tensor([[0, *document.tolist()]])
        with torch.no_grad():
            logits = network.logits(network.rows(ids[0, :-1], [ids.shape[1] - 1]))
        expected += float(nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
    assert whole.nats == pytest.approx(expected, rel=1e-5)


def test_some_documents_are_evenly_spread_and_their_bytes_are_their_share(shards: Path) -> None:
    validation = TokenShards(shards / "validation")
    some = held_out(fresh().network, validation, row_tokens=64, separator=0, max_documents=4)
    chosen = [validation.document(number).size for number in (0, 3, 6, 9)]
    assert some.tokens == sum(chosen)
    assert some.documents == 4
    share = sum(chosen) / validation.num_tokens
    assert some.text_bytes == pytest.approx(share * validation.index.text_bytes)
