"""A model's bits per byte, beside those of xz and n-grams that read the same documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from danlu.core.errors import ConfigError, DataError
from danlu.core.events import Silent
from danlu.core.files import read_json
from danlu.evaluate.baselines import KneserNey, xz
from danlu.flow.run import RunResult, run
from danlu.flow.stages.bits_per_byte import BitsPerByteConfig
from danlu.lineage.store import Store
from danlu.text.bpe import BPEConfig, is_held_out
from tests.tiny import shop_rows

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = """
name: tiny
seed: 3
stages:
  - {name: texts, use: fetch, path: FOLDER/texts.jsonl}
  - {name: tokenizer, use: train_tokenizer, inputs: {rows: texts}, bpe: {vocabulary_size: 400, chinese_share: null}}
  - {name: other, use: train_tokenizer, inputs: {rows: texts}, bpe: {vocabulary_size: 300, chinese_share: null}}
  - {name: tokens, use: tokenize, inputs: {rows: texts, tokenizer: tokenizer}, validation_share: 0.1}
  - {name: new, use: new_model, inputs: {tokenizer: tokenizer}, width: 32, layers: 1, heads: 2, context_length: 64}
  - name: base
    use: pretrain
    inputs: {model: new, tokens: tokens}
    steps: 4
    sequence_length: 48
    tokens_per_step: 192
    validate_every: 4
    precision: fp32
  - {name: found, use: bits_per_byte, inputs: {model: base, tokens: tokens}, row_tokens: 48, orders: [2, 4]}
"""
UNTRAINED = (
    RECIPE.partition("  - name: base")[0]
    + "  - {name: found, use: bits_per_byte, inputs: {model: new, tokens: tokens}}\n"
)
TEXTS = [str(row["Review Text"]) for row in shop_rows(120) if row["Review Text"]] + ["水位上涨 <|endoftext|> 12 次。"]


def made(folder: Path, *overrides: str, recipe: str = RECIPE) -> RunResult:
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    path = folder / "tiny.yaml"
    path.write_text(recipe.replace("FOLDER", str(folder)))
    return run(path, *overrides, store=Store(folder / "store"), display=Silent())


def test_a_model_is_measured_on_the_documents_that_its_rivals_get(tmp_path: Path) -> None:
    result = made(tmp_path)
    found = result.artifacts["found"]
    metrics = found.manifest.metrics
    config = BPEConfig(held_out=0.1)
    train, held_out = ([t.encode() for t in TEXTS if is_held_out(t, config) == side] for side in (False, True))
    assert metrics["held_out_documents"] == len(held_out) > 5
    assert metrics["held_out_bytes"] == sum(map(len, held_out))
    assert metrics["train_bytes"] == sum(map(len, train))
    assert metrics["xz"] == pytest.approx(xz(train, held_out).bits_per_byte, abs=1e-4)
    for order in (2, 4):
        ngram = KneserNey(train, order).measure(held_out).bits_per_byte
        assert metrics["kneser_ney_of_order"][str(order)] == pytest.approx(ngram, abs=1e-4)
    assert metrics["kneser_ney"] == min(metrics["kneser_ney_of_order"].values())
    trained = result.artifacts["base"].manifest.metrics["held_out_bits_per_byte"]
    assert metrics["model"] == pytest.approx(trained, rel=0.02), "bf16 where the machine is fast at it"
    assert read_json(found.path / "bits_per_byte.json") == metrics


def test_rivals_may_be_left_out(tmp_path: Path) -> None:
    metrics = made(tmp_path, "found.orders=[]", "found.with_xz=false").artifacts["found"].manifest.metrics
    assert metrics["model"] > 1
    assert (metrics["xz"], metrics["kneser_ney"], metrics["kneser_ney_of_order"]) == (None, None, {})


def test_a_model_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    other = UNTRAINED.replace("new_model, inputs: {tokenizer: tokenizer}", "new_model, inputs: {tokenizer: other}")
    with pytest.raises(DataError, match=r"validation decode to .* they were made of .*\. Give the model whose"):
        made(tmp_path, recipe=other)


def test_shards_that_hold_out_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"hold out no document\. Raise validation_share"):
        made(tmp_path, "tokens.validation_share=0", recipe=UNTRAINED)
    with pytest.raises(ConfigError, match=r"row_tokens is 65, the model reads 64 tokens\. Use fewer"):
        made(tmp_path, "found.row_tokens=65", recipe=UNTRAINED)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"row_tokens is 1\. Use 2 or more"):
        BitsPerByteConfig(row_tokens=1)
    with pytest.raises(ConfigError, match=r"orders holds 8\. Use 1 to 7"):
        BitsPerByteConfig(orders=(4, 8))
