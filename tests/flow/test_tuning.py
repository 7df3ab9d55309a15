"""Recipes that fine-tune a model on rows: labels, tags, vectors, targets, pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import BertForMaskedLM, CLIPModel

from danlu.core.errors import ConfigError, DataError, TrainError
from danlu.core.events import Silent
from danlu.flow.recipe import load_recipe, load_stage
from danlu.flow.run import run
from danlu.flow.stages.seq2seq import compare
from danlu.flow.tuning import read_split
from danlu.lineage.store import Artifact, Store
from danlu.models.encode import classify, embed, tag
from danlu.models.load import load_model
from danlu.models.vision import ImageModel
from tests.models.case import Case
from tests.models.cases.vision import CASES
from tests.models.encoders import save_encoder
from tests.tiny import make_tokenizer
from tests.train.stages import test_classify, test_embed, test_pair, test_seq2seq, test_tag

RECIPE = """
name: tiny
seed: 3
stages:
  - {{name: model, use: fetch, path: {model}}}
  - {{name: data, use: fetch, path: {data}}}
  - name: tuned
    use: {use}
    inputs: {{model: model, data: data}}
    audit: "{audit}"
    validate_every: 2
    optim: {{learning_rate: 1.0e-3}}
    epochs: null
    steps: 4
    {more}
"""
ROWS = {
    "classify": test_classify.ROWS,
    "tag": test_tag.ROWS,
    "embed": test_embed.ROWS,
    "seq2seq": test_seq2seq.ROWS,
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("body")
    save_encoder(folder, BertForMaskedLM)
    return folder


def data(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """The same rows as every split."""
    folder.mkdir(exist_ok=True)
    for name in ("train", "validation", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def tuned(tmp_path: Path, use: str, model: Path, rows: Path, more: str = "", audit: str = "off") -> Artifact:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(use=use, model=model, data=rows, more=more, audit=audit))
    made = run(path, store=Store(tmp_path / "store"), display=Silent()).artifacts["tuned"]
    assert (made.path / "log.jsonl").is_file()
    assert (made.path / "training.html").is_file()
    assert made.manifest.metrics["left_out"] == {}
    return made


def save_clip(folder: Path) -> None:
    """A tiny CLIP with tokenizer and image processor."""
    case = CASES["clip"]
    text = {**case.numbers["text_config"], "vocab_size": 420, "bos_token_id": 1, "eos_token_id": 2}
    Case(config=case.config, peer=CLIPModel, numbers={**case.numbers, "text_config": text}).make().save_pretrained(
        folder
    )
    make_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    size = {"height": 12, "width": 12}
    settings = {"image_processor_type": "CLIPImageProcessor", "size": size, "crop_size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("more", ["class_weights: balanced", "lora: {rank: 2}"])
def test_classify_makes_a_classifier_and_scores_it_on_test_rows(body: Path, tmp_path: Path, more: str) -> None:
    made = tuned(tmp_path, "classify", body, data(tmp_path / "rows", test_classify.ROWS), more)
    test = made.manifest.metrics["test"]
    assert test["per_label"].keys() == {"cat", "dog", "people"}
    model = load_model(made.path, precision="fp32")
    found = [one[0].label for one in classify(model, [row["text"] for row in test_classify.ROWS])]
    hits = sum(label == row["label"] for label, row in zip(found, test_classify.ROWS, strict=True))
    assert test["accuracy"] == pytest.approx(hits / len(found), abs=0.13)  # one text may turn over in bf16
    assert ("merged_change" in made.manifest.metrics) == more.startswith("lora")


def test_tag_makes_a_tagger(body: Path, tmp_path: Path) -> None:
    made = tuned(tmp_path, "tag", body, data(tmp_path / "rows", test_tag.ROWS))
    assert made.manifest.metrics["labels"] == ["O", "B-LOC", "B-PER", "I-LOC", "I-PER"]
    assert 0.0 <= made.manifest.metrics["test"]["f1"] <= 1.0
    tag(load_model(made.path), ["ann lee in paris"])


def test_embed_makes_a_sentence_model_with_prompts(body: Path, tmp_path: Path) -> None:
    rows = data(tmp_path / "rows", test_embed.ROWS)
    made = tuned(tmp_path, "embed", body, rows, 'query_prompt: "a "\n    max_row_tokens: 9')
    assert made.manifest.metrics["test"].keys() == {"loss", "recall_at_1", "recall_at_10", "mrr"}
    model = load_model(made.path)
    assert model.sentence is not None
    assert (model.sentence.prompts, model.sentence.max_tokens) == ({"query": "a "}, 9)
    assert embed(model, ["dog"], prompt="query").shape == (1, 32)


def test_seq2seq_makes_a_model_and_scores_what_it_writes(tmp_path: Path) -> None:
    test_seq2seq.bart(tmp_path / "bart")
    more = "tokens_per_step: 64\n    max_target_tokens: 10\n    num_beams: 2"
    made = tuned(tmp_path, "seq2seq", tmp_path / "bart", data(tmp_path / "rows", test_seq2seq.ROWS), more)
    assert made.manifest.metrics["test"].keys() == {"loss", "chrf", "bleu4"}


def test_pair_makes_a_model_that_still_reads_images(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    save_clip(folder)
    rows = test_pair.rows(tmp_path / "rows")
    made = tuned(tmp_path, "pair", folder, data(tmp_path / "rows", rows), "rows_per_step: 5")
    assert "image_recall_at_10" in made.manifest.metrics["test"]
    model = ImageModel.of(load_model(made.path, precision="fp32"), made.path)
    photo = Image.new("RGB", (20, 20), (255, 0, 0))
    assert len(model.choose([photo], ["red dress", "navy dress"])[0]) == 2


@pytest.mark.parametrize("name", ["sentiment_zh", "sentiment_en"])
def test_the_recipes_of_sentiment_are_whole(root: Path, name: str) -> None:
    recipe = load_recipe(root / "recipes" / f"{name}.yaml")
    assert recipe.aliases == {name.replace("_", "-"): "classifier"}
    for stage in recipe.stages:
        if stage.config.__class__.__name__ == "ScriptConfig" and stage.config.command[0] == "python":
            assert (root / stage.config.command[1]).is_file()


def test_bleu_and_chrf_read_chinese_by_the_character() -> None:
    assert compare(["猫坐在垫子上"], ["猫坐在垫子上"]) == pytest.approx({"chrf": 100.0, "bleu4": 100.0})
    assert compare(["the cat sat on it"], ["the cat sat on it"])["bleu4"] == pytest.approx(100.0)
    assert 0 < compare(["猫坐在垫子"], ["猫坐在垫子上"])["bleu4"] < 100


@pytest.mark.parametrize("use", ["classify", "tag", "embed", "seq2seq", "pair"])
def test_rows_of_the_same_kind_in_every_split_are_refused_by_the_audit(use: str, body: Path, tmp_path: Path) -> None:
    model, rows = body, ROWS.get(use) or test_pair.rows(tmp_path / "rows")
    if use in ("seq2seq", "pair"):
        model = tmp_path / use
        (test_seq2seq.bart if use == "seq2seq" else save_clip)(model)
    with pytest.raises(TrainError, match="100% of the validation rows are training rows too"):
        tuned(tmp_path, use, model, data(tmp_path / "rows", rows), audit="refuse")


def test_data_and_settings_that_make_no_model_are_refused(body: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no train\.jsonl\. Give the folder of a stage that makes one"):
        read_split(tmp_path)
    with pytest.raises(ConfigError, match=r"int8_base is true, but this stage makes a whole model"):
        tuned(tmp_path, "tag", body, data(tmp_path / "rows", test_tag.ROWS), "lora: {}\n    int8_base: true")


@pytest.mark.parametrize(
    "stage",
    ["sft", "pretrain", "classify", "tag", "embed", "seq2seq", "pair", "dpo", "reward", "grpo", "distil", "rank"],
)
def test_every_training_stage_takes_several_processes_and_can_be_checked(stage: str) -> None:
    assert load_stage(stage).trains
