"""sft → merge → evaluate → compare → quantize → report on the tiny model: files, numbers, and wrong wiring."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import danlu
from danlu.core.errors import ConfigError, DanluError, DataError, ModelError, TrainError
from danlu.core.files import read_json, read_jsonl
from danlu.flow.run import RunResult
from tests.tiny import write_shop

Run = Callable[..., RunResult]
DATA = """
  - {{name: reviews, use: fetch, path: {shop}}}
  - name: data
    use: prepare
    inputs: {{rows: reviews}}
    split: {{test_products: 12, validation_products: 3}}
  - {{name: weights, use: fetch, path: {model}}}
  - {{name: base, use: convert, inputs: {{weights: weights}}}}
"""
TRAIN = """
  - name: train
    use: sft
    inputs: {model: base, data: data}
    steps: 12
    tokens_per_step: 2048
    validate_every: 6
    optim: {learning_rate: 1.0e-2}
  - {name: tuned, use: merge, inputs: {model: base, adapter: train}}
"""
SCORES = """
  - name: {name}_scores
    use: evaluate
    inputs: {{model: {name}, data: data}}
    evaluate: {{max_items: 8, max_tokens: 24}}
"""
WHOLE = (
    TRAIN
    + SCORES.format(name="base")
    + SCORES.format(name="tuned")
    + """
  - {name: better, use: compare, inputs: {baseline: base_scores, candidate: tuned_scores}}
  - {name: int8, use: quantize, inputs: {model: tuned, data: data}}
  - {name: plain_int8, use: quantize, inputs: {model: tuned}}
"""
    + SCORES.format(name="int8")
    + "  - {name: report, use: report, inputs: {data: data, train: train, base: base_scores, tuned: tuned_scores}}\n"
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 reviews as CSV."""
    return write_shop(tmp_path_factory.mktemp("shop") / "reviews.csv")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for a file's tests: data and base are made once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def run(tmp_path: Path, home: Path, shop: Path, tiny_folder: Path, one_thread: None) -> Run:
    """Run more stages after data (from the shop) and base (the tiny model)."""

    def go(stages: str, *overrides: str, store: Path = home) -> RunResult:
        recipe = tmp_path / "tiny.yaml"
        recipe.write_text("name: tiny\nseed: 5\nstages:" + DATA.format(shop=shop, model=tiny_folder) + stages)
        return danlu.run(recipe, *overrides, store=store)

    return go


def test_training_makes_an_adapter_and_its_curve_and_lowers_the_loss(run: Run) -> None:
    artifact = run(TRAIN).artifacts["train"]
    assert set(artifact.manifest.files) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "log.jsonl",
        "training.html",
    }
    metrics = artifact.manifest.metrics
    assert metrics["steps"] == 12
    assert metrics["last_loss"] < metrics["first_loss"] - 0.5
    assert 0 < metrics["trainable_share"] < 0.5
    curve = list(read_jsonl(artifact.path / "log.jsonl"))
    assert [line["step"] for line in curve if "loss" in line] == list(range(1, 13))
    assert [line["step"] for line in curve if "validation_loss" in line] == [6, 12]


def test_merging_changes_the_linears_by_the_adapter_and_nothing_else(run: Run) -> None:
    artifacts = run(TRAIN).artifacts
    base, tuned = (load_file(artifacts[n].path / "model.safetensors") for n in ("base", "tuned"))
    adapter = load_file(artifacts["train"].path / "adapter_model.safetensors")
    config = read_json(artifacts["train"].path / "adapter_config.json")
    changed: set[str] = set()
    for name, weight in base.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" in adapter:
            a, b = adapter[f"{stem}.lora_A.weight"], adapter[f"{stem}.lora_B.weight"]
            torch.testing.assert_close(tuned[name], weight + b @ a * (config["lora_alpha"] / config["r"]))
            changed.add(name)
        else:
            assert torch.equal(tuned[name], weight)
    assert len(changed) == 14  # seven projections in each of two layers
    assert artifacts["tuned"].manifest.metrics["largest_change"] > 0


def test_the_whole_chain_gives_comparable_numbers_and_a_report(run: Run) -> None:
    result = run(WHOLE)
    metrics = {name: artifact.manifest.metrics for name, artifact in result.artifacts.items()}
    for name in ("base_scores", "tuned_scores", "int8_scores"):
        assert metrics[name]["items"] == 8
        assert metrics[name]["bleu4"]["low"] <= metrics[name]["bleu4"]["value"] <= metrics[name]["bleu4"]["high"]
        assert {"coverage", "invention", "chrf", "items_per_s", "size_bytes"} <= metrics[name].keys()
    compared = read_json(result.artifacts["better"].path / "comparison.json")
    assert compared == metrics["better"]
    assert compared["bleu4"]["difference"] == pytest.approx(
        metrics["tuned_scores"]["bleu4"]["value"] - metrics["base_scores"]["bleu4"]["value"], abs=2e-6
    )
    assert metrics["int8"]["calibration_rows"] == 32
    assert metrics["plain_int8"]["calibration_rows"] == 0
    for name in ("int8", "plain_int8"):
        assert 0.25 < metrics[name]["size_ratio"] < 0.45  # scales weigh much in so small a model
        assert metrics[name]["fp32_bytes"] == 4 * metrics["base"]["parameters"]
    html = (result.artifacts["report"].path / "report.html").read_text(encoding="utf-8")
    assert "BLEU-4" in html
    assert "low rating" in html
    assert run(WHOLE).reused == set(result.artifacts)


def test_no_validation_rows_is_no_error(run: Run) -> None:
    result = run(TRAIN, "data.split.validation_products=0", "train.steps=2")
    assert result.artifacts["train"].manifest.metrics["validation_loss"] is None


@pytest.mark.parametrize(
    ("stages", "error", "message"),
    [
        ("{name: x, use: compare, inputs: {baseline: base, candidate: base}}", DataError, r"There is no metrics\.json"),
        ("{name: x, use: evaluate, inputs: {model: base, data: base}}", DataError, r"There is no test\.jsonl in"),
        ("{name: x, use: evaluate, inputs: {model: data, data: data}}", ModelError, r"has no config\.json"),
        ("{name: x, use: sft, inputs: {model: base, data: reviews}}", DataError, r"There is no train\.jsonl in"),
        ("{name: x, use: merge, inputs: {model: base, adapter: data}}", DanluError, r"no adapter_config\.json"),
        ("{name: x, use: quantize, inputs: {model: base, data: base}}", DataError, r"There is no train\.jsonl in"),
        ("{name: x, use: convert, inputs: {weights: data}}", ModelError, r"holds 0 \.gguf files and no config\.json"),
        ("{name: x, use: prepare, inputs: {rows: base}}", DataError, r"holds \d files\. Give the table as one file"),
        ("{name: x, use: sft, inputs: {model: base, data: data}, max_row_tokens: 9}", TrainError, r"No row can be"),
    ],
)  # fmt: skip
def test_wrong_wiring_says_what_is_missing_where(stages: str, error: type[DanluError], message: str, run: Run) -> None:
    with pytest.raises(error, match=message) as caught:
        run(f"  - {stages}\n")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("base_scores.evaluate.task=product_cpy", r"base_scores\.evaluate: task is 'product_cpy'\. Did you mean"),
        ("base_scores.evaluate.max_tokens=0", r"base_scores\.evaluate: max_tokens is 0"),
        ("base_scores.engine.max_rows=0", r"base_scores\.engine: max_rows is 0"),
        ("int8.method=int9", r"int8: method is 'int9'\. Did you mean 'int8'"),
        ("train.lora.rank=0", r"train\.lora: rank is 0"),
        ("train.stpes=3", r"Unknown key 'train\.stpes'\. Did you mean 'steps'"),
    ],
)
def test_what_is_wrong_in_a_late_stage_is_told_before_the_first(
    override: str, message: str, run: Run, home: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(WHOLE, override, store=home / "untouched")
    assert not (home / "untouched").exists()


def test_every_manifest_is_whole_json(run: Run, home: Path) -> None:
    result = run(WHOLE)
    for artifact in result.artifacts.values():
        assert json.loads((artifact.path / "manifest.json").read_text())["id"] == artifact.id
        result.store.verify(artifact.id)
