"""Texts written while a model learns: for the eye, and without a trace in the run."""

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from danlu.core.errors import ConfigError
from danlu.core.events import Events
from danlu.core.records import GenerateOptions
from danlu.flow.training import render
from danlu.lineage.manifest import Energy
from danlu.models.generate import generate
from danlu.train import source_target
from danlu.train.adapter import lora_state
from danlu.train.objectives.masked import MaskedConfig
from danlu.train.samples import Ask, SampledConfig, Samples, asks_of_chats
from danlu.train.settings import Job
from danlu.train.stages import seq2seq
from danlu.train.stages.sft import encode_rows

from . import corpus, opinions
from .chats import CONFIG as CHATS
from .chats import Stop, chats, fresh, train
from .stages import test_distil, test_grpo, test_seq2seq

CONFIG = dataclasses.replace(CHATS, samples=2)


def curve(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work.parent / "curve.jsonl").read_text().splitlines()]


def written(lines: list[dict[str, Any]]) -> list[Mapping[str, Any]]:
    return [line for line in lines if "sample" in line]


def test_each_validation_writes_what_the_first_validation_rows_ask(tiny_folder: Path, tmp_path: Path) -> None:
    listener = Stop(after=-1, error=RuntimeError())
    model = fresh(tiny_folder)
    train(model, tmp_path / "work", CONFIG, listener)
    lines = written(curve(tmp_path / "work"))
    rows = chats(28)[:2]
    assert Counter(line["step"] for line in lines) == {10: 2, 20: 2}
    assert [line["wanted"].strip() for line in lines[:2]] == [row["messages"][1]["content"] for row in rows]
    assert all(row["messages"][0]["content"] in line["prompt"] for row, line in zip(rows, lines, strict=False))
    said = [text for text in listener.said if "→" in text]
    assert len(said) == 4
    assert said[0].startswith("  step 10: ")
    again = generate(model, [row["messages"][:1] for row in rows], GenerateOptions(max_tokens=CONFIG.sample_tokens))
    assert [line["sample"] for line in lines[2:]] == [answer.text for answer in again]


def test_samples_change_neither_losses_nor_weights_nor_random_numbers(tiny_folder: Path, tmp_path: Path) -> None:
    found = []
    for count in (0, 2):
        model = fresh(tiny_folder)
        dropping = dataclasses.replace(CONFIG.lora, dropout=0.3) if CONFIG.lora else None
        train(model, tmp_path / str(count) / "work", dataclasses.replace(CONFIG, samples=count, lora=dropping))
        losses = [line for line in curve(tmp_path / str(count) / "work") if "sample" not in line]
        found.append((losses, lora_state(model)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(tensor, found[1][1][name]) for name, tensor in found[0][1].items())


def test_writing_draws_no_random_number(tiny_folder: Path, tmp_path: Path) -> None:
    model = fresh(tiny_folder)
    rows = encode_rows(chats(2), model.chat, 80).encoded
    samples = Samples(model, CONFIG, asks_of_chats(model, rows))
    before = (torch.get_rng_state(), random.getstate())
    lines: list[Mapping[str, Any]] = []

    class Curve:
        def add(self, values: Mapping[str, Any]) -> None:
            lines.append(values)

    job = Job(work=tmp_path, log_path=tmp_path / "c", events=Events(), seed=0)
    samples.write(1, Curve(), job)  # pyright: ignore[reportArgumentType]
    assert len(lines) == 2
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_every_task_of_a_model_that_writes_has_samples(tiny_folder: Path, tmp_path: Path) -> None:
    """What a row asks is the task's own: a prompt, a source, the beginning of a document."""
    few = {"samples": 1, "sample_tokens": 4, "steps": 2, "validate_every": 2}
    opinions.learn(fresh(tiny_folder), tmp_path / "dpo", dataclasses.replace(opinions.CONFIG, **few))
    test_grpo.learn(fresh(tiny_folder), tmp_path / "grpo", dataclasses.replace(test_grpo.CONFIG, **few))
    distil = dataclasses.replace(test_distil.CONFIG, **few)
    test_distil.run(tiny_folder, tmp_path / "distil", distil, student=fresh(tiny_folder))
    found = {name: written(curve(tmp_path / name / "work"))[0] for name in ("dpo", "grpo", "distil")}
    asked, pair = chats(25)[24]["messages"], opinions.pairs(1)[0]
    assert asked[0]["content"] in found["distil"]["prompt"]
    assert found["distil"]["wanted"].strip() == asked[1]["content"]
    assert pair["prompt"] in found["dpo"]["prompt"]
    assert found["dpo"]["wanted"].strip() == pair["chosen"]
    assert pair["prompt"] in found["grpo"]["prompt"]


def test_pretraining_goes_on_with_documents_where_the_next_token_is_asked(tmp_path: Path) -> None:
    corpus.write_corpus(tmp_path / "train", 30)
    corpus.write_corpus(tmp_path / "validation", 6, first=30)
    few = {"samples": 2, "sample_tokens": 4, "steps": 2, "validate_every": 2}
    for family, more in (("llama", {}), ("bert", {"masked": MaskedConfig()})):
        config = dataclasses.replace(corpus.CONFIG, **few, **more)
        work = tmp_path / family / "work"
        corpus.train(corpus.fresh(family), tmp_path, work, config)
        lines = written(curve(work))
        assert len(lines) == (2 if family == "llama" else 0)
        assert all(line["prompt"] + line["wanted"] in " ".join(corpus.texts(36)) for line in lines)


def test_an_encoder_decoder_writes_for_sources(tmp_path: Path) -> None:
    test_seq2seq.bart(tmp_path / "bart")
    model = fresh(tmp_path / "bart")
    few = {"samples": 1, "sample_tokens": 4, "steps": 2, "validate_every": 2, "num_written": 0}
    rows = source_target.encode_rows(test_seq2seq.ROWS, model).items
    seq2seq.train(model, rows, rows[:2], dataclasses.replace(test_seq2seq.CONFIG, **few), test_seq2seq.job(tmp_path))
    (line,) = written([json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()])
    assert (line["prompt"], line["wanted"]) == ("the cat sat", "猫 坐")


def test_prompts_that_are_given_replace_rows(tiny_folder: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=2, validate_every=2, sample_prompts=("navy dress",))
    train(fresh(tiny_folder), tmp_path / "work", config)
    (line,) = written(curve(tmp_path / "work"))
    assert "navy dress" in line["prompt"]
    assert line["wanted"] == ""


def test_a_row_that_is_all_to_be_learnt_is_begun_with_its_first_tokens(tiny_folder: Path) -> None:
    model = fresh(tiny_folder)
    row = encode_rows(chats(1), model.chat, 80).encoded[0]
    (ask,) = asks_of_chats(model, [dataclasses.replace(row, is_answer=[True] * len(row.ids))])
    assert list(ask.ids) == row.ids[: min(12, len(row.ids) // 2)]


def test_rows_that_leave_no_room_are_passed_over_and_prompts_refused(tiny_folder: Path) -> None:
    model = fresh(tiny_folder)
    long = Ask([5] * model.config.context_length)
    samples = Samples(model, CONFIG, [long, Ask([]), Ask([5, 6])])
    assert [list(ask.ids) for ask in samples._asks] == [[5, 6]]  # pyright: ignore[reportPrivateUsage]
    config = dataclasses.replace(CONFIG, sample_prompts=("word " * model.config.context_length,))
    with pytest.raises(ConfigError, match=r"sample_prompts has a text of \d+ tokens; the model reads \d+"):
        Samples(model, config, [])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samples": -1}, r"samples is -1\. Use 0 for none"),
        ({"sample_tokens": 0}, r"sample_tokens is 0\. Use 1 or more"),
        ({"sample_prompts": ("",)}, r"sample_prompts has an empty text"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SampledConfig(**wrong)


def test_the_report_shows_a_prompt_once_with_a_text_for_each_step() -> None:
    lines = [
        {"step": 1, "loss": 2.0},
        *({"step": step, "prompt": "navy dress", "sample": f"<b>try {step}", "wanted": "silk"} for step in (5, 10)),
    ]
    energy = Energy(value_wh=1.0, method="estimated", grid_kg_per_kwh=0.5, gco2=0.5)
    page = render("Title", lines, {}, {}, energy)
    assert page.count("navy dress") == 1
    assert "&lt;b&gt;try 5" in page
    assert "&lt;b&gt;try 10" in page
    assert page.count("silk") == 1
