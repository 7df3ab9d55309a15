"""A recipe from text to a model trained from scratch."""

import json
from pathlib import Path

import pytest
import torch

from danlu.core.errors import ModelError
from danlu.core.events import Silent
from danlu.flow.run import run
from danlu.lineage.store import Store
from danlu.models.load import load_model
from tests.tiny import shop_rows

RECIPE = """
name: tiny
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
  - name: base
    use: pretrain
    inputs: {model: new, tokens: tokens}
    steps: 6
    sequence_length: 48
    tokens_per_step: 192
    validate_every: 3
    optim: {learning_rate: 1.0e-2}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    rows = [{"text": row["Review Text"]} for row in shop_rows(120) if row["Review Text"]]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.replace("FOLDER", str(tmp_path)))
    return path


def test_a_recipe_makes_a_model_from_text_alone(recipe: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    store = Store(tmp_path / "store")
    result = run(recipe, store=store, display=Silent())
    new, base = (result.artifacts[name] for name in ("new", "base"))
    assert new.manifest.metrics["vocabulary_size"] == 448
    metrics = base.manifest.metrics
    assert metrics["last_loss"] < metrics["first_loss"]
    assert metrics["held_out_bits_per_byte"] > 0
    assert (base.path / "log.jsonl").is_file()
    assert "Pre-training" in (base.path / "training.html").read_text(encoding="utf-8")
    model = load_model(base.path)
    assert model.num_parameters() == new.manifest.metrics["parameters"]
    assert json.loads((base.path / "config.json").read_text())["torch_dtype"] == "float32"
    tokenizers = [(artifact.path / "tokenizer.json").read_bytes() for artifact in (result.artifacts["tokenizer"], base)]
    assert tokenizers[0] == tokenizers[1], "so that shards and model are known to belong together"


def test_a_folder_without_a_tokenizer_makes_no_model(recipe: Path, tmp_path: Path) -> None:
    text = recipe.read_text().replace("inputs: {tokenizer: tokenizer}", "inputs: {tokenizer: texts}")
    recipe.write_text(text)
    with pytest.raises(ModelError, match=r"has no tokenizer\. Give a train_tokenizer stage, or a model with one\."):
        run(recipe, store=Store(tmp_path / "store"), display=Silent())
