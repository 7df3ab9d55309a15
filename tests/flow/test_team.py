"""Recipes in two processes: every stage that trains comes to what one process makes of it, with weights spread over
both where the stage can."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM

from danlu.core.events import Silent
from danlu.flow.run import run
from danlu.lineage.runs import resolve
from danlu.lineage.store import Artifact, Store
from tests.models.encoders import save_encoder
from tests.tiny import shop_rows
from tests.train.chats import chats
from tests.train.opinions import pairs
from tests.train.shoppers import shopping
from tests.train.stages import test_classify, test_pair, test_seq2seq, test_tag

from .test_tuning import data, save_clip

pytestmark = pytest.mark.timeout(400)

SOURCES = """
name: together
seed: 3
stages:
  - {name: texts, use: fetch, path: FOLDER/texts.jsonl}
  - {name: tokenizer, use: train_tokenizer, inputs: {rows: texts}, bpe: {vocabulary_size: 400, chinese_share: null}}
  - {name: tokens, use: tokenize, inputs: {rows: texts, tokenizer: tokenizer}, validation_share: 0.1}
  - name: new
    use: new_model
    inputs: {tokenizer: tokenizer}
    width: 32
    layers: 1
    feedforward: 64
    context_length: 64
  - {name: shopping, use: fetch, path: FOLDER/shopping.jsonl}
"""
FOLDERS = ("decoder", "encoder", "bart", "clip", "chats", "opinions", "labels", "tags", "scores", "targets", "captions")
STAGES: dict[str, str] = {
    "pretrain": "inputs: {model: new, tokens: tokens}, sequence_length: 48, tokens_per_step: 192",
    "sft": "inputs: {model: decoder, data: chats}, lora: null, tokens_per_step: 160, max_row_tokens: 80",
    "classify": "inputs: {model: encoder, data: labels}, rows_per_step: 6, decision: macro_f1",
    "tag": "inputs: {model: encoder, data: tags}, rows_per_step: 4",
    "embed": "inputs: {model: encoder, data: scores}, rows_per_step: 4, loss: cosine",
    "seq2seq": "inputs: {model: bart, data: targets}, tokens_per_step: 64, max_target_tokens: 10, num_beams: 2",
    "pair": "inputs: {model: clip, data: captions}, rows_per_step: 5",
    "dpo": "inputs: {model: decoder, data: opinions}, rows_per_step: 4, max_row_tokens: 80",
    "reward": "inputs: {model: decoder, data: opinions}, rows_per_step: 4, max_row_tokens: 80",
    "grpo": "inputs: {model: decoder, data: opinions}, max_answer_tokens: 4, rewards: [{regex: {pattern: a}}]",
    "distil": "inputs: {teacher: decoder, data: chats}, keep_layers: 1, tokens_per_step: 160, max_row_tokens: 80",
    "rank": "inputs: {data: shopping}, width: 16, max_items: 8, rows_per_step: 20, dropout: 0.0",
}
COMMON = 'steps: 3, validate_every: 2, precision: fp32, optim: {learning_rate: 1.0e-3}, audit: "off"'
WHOLE = ("grpo",)
"""Stages that need all weights in every process."""
OWN_NEGATIVES = ("pair",)
"""Stages that compare the rows of one process with each other, so two processes learn another thing."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """Every stage that trains, each on a tiny model of its kind."""
    folder = tmp_path_factory.mktemp("together")
    texts = [{"text": row["Review Text"]} for row in shop_rows(120) if row["Review Text"]]
    for name, rows in (("texts", texts), ("shopping", shopping())):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "decoder").symlink_to(tiny_folder)
    save_encoder(folder / "encoder", BertForMaskedLM, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    test_seq2seq.bart(folder / "bart")
    save_clip(folder / "clip")
    words = ("red dress", "navy top", "green skirt")
    scores = [{"anchor": a, "positive": b, "score": float(a == b)} for a in words for b in words]
    for name, rows in (
        ("chats", chats(16)), ("opinions", pairs(16)), ("labels", test_classify.ROWS), ("tags", test_tag.ROWS),
        ("scores", scores), ("targets", test_seq2seq.ROWS), ("captions", test_pair.rows(folder / "captions")),
    ):  # fmt: skip
        data(folder / name, rows)
    lines = [f"  - {{name: {name}, use: fetch, path: {folder / name}}}\n" for name in FOLDERS]
    for name, settings in STAGES.items():
        kind = "ddp" if name in WHOLE else "fsdp"
        lines.append(f"  - {{name: {name}_, use: {name}, {settings}, {COMMON}, parallel: {kind}}}\n")
    aliases = ", ".join(f"{name}: {name}_" for name in STAGES)
    path = folder / "together.yaml"
    path.write_text(SOURCES.replace("FOLDER", str(folder)) + "".join(lines) + f"aliases: {{{aliases}}}\n")
    return path


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Mapping[str, Artifact]:
    torch.set_num_threads(1)
    made = run(recipe, store=Store(recipe.parent / "alone"), display=Silent()).artifacts
    return {name: made[f"{name}_"] for name in STAGES}


@pytest.fixture(scope="module")
def together(recipe: Path) -> Mapping[str, Artifact]:
    home = recipe.parent / "together"
    command = [sys.executable, "-m", "danlu.cli.main", "train", recipe, "--nproc", "2", "--home", home]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return {name: resolve(Store(home), name) for name in STAGES}


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_make_of_a_stage_what_one_does(
    stage: str, alone: Mapping[str, Artifact], together: Mapping[str, Artifact]
) -> None:
    one, two = alone[stage], together[stage]
    assert one.manifest.files.keys() == two.manifest.files.keys()
    found, expected = numbers(two.manifest.metrics), numbers(one.manifest.metrics)
    assert found.keys() == expected.keys()
    assert all(map(math.isfinite, found.values()))
    if stage not in OWN_NEGATIVES:
        assert losses(two) == pytest.approx(losses(one), rel=1e-4)
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)


def losses(artifact: Artifact) -> list[float]:
    """Of every step."""
    lines = [json.loads(line) for line in (artifact.path / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def numbers(metrics: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """What was measured, by path, without what follows from time and memory."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{before}{name}.")
        elif isinstance(value, int | float) and name not in ("train_tokens_per_s", "peak_share", "peak_rss_bytes"):
            found[before + name] = float(value)
    return found
