import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from danlu.core.config import from_mapping
from danlu.core.errors import ConfigError, DataError
from danlu.core.events import Events
from danlu.core.files import read_json, read_jsonl
from danlu.core.records import GenerateOptions
from danlu.evaluate.run import EvaluateConfig, evaluate, read_samples

Rows = list[dict[str, Any]]


def test_an_evaluation_writes_samples_and_metrics(rows: Rows, gold: Any, tmp_path: Path) -> None:
    metrics = evaluate(gold, rows, EvaluateConfig(max_items=20), tmp_path, Events(tmp_path / "events.jsonl"))
    assert read_json(tmp_path / "metrics.json") == metrics
    samples = list(read_jsonl(tmp_path / "samples.jsonl"))
    assert [sample["id"] for sample in samples] == [f"row-{i}" for i in range(20)]
    assert samples[3] == {
        "id": "row-3",
        "prompt": rows[3]["messages"][:1],
        "reference": rows[3]["messages"][1]["content"],
        "facts": rows[3]["attributes"],
        "output": rows[3]["messages"][1]["content"],  # white space around an answer is not part of it
    }
    assert metrics["items"] == 20
    assert metrics["output_tokens_per_item"] == 11.0
    assert metrics["items_per_s"] > 0
    assert metrics["output_tokens_per_s"] == pytest.approx(11 * metrics["items_per_s"], rel=0.01)
    assert metrics["task"] == {"name": "product_copy", "version": 1}
    assert set(metrics["signatures"]) == {"bleu4", "chrf", "coverage", "invention"}
    assert metrics["signatures"]["bleu4"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    bars = [e for e in read_jsonl(tmp_path / "events.jsonl") if e["event"] == "bar"]
    assert [(bar["done"], bar["total"]) for bar in bars] == [(20, 20)]


def test_samples_are_read_back_as_they_were_asked(rows: Rows, gold: Any, tmp_path: Path) -> None:
    evaluate(gold, rows, EvaluateConfig(), tmp_path, Events())
    examples, outputs = read_samples(tmp_path)
    assert [e.prompt for e in examples] == [row["messages"][:1] for row in rows]
    assert outputs == [e.reference for e in examples]


def test_scores_do_not_depend_on_when_they_were_made(rows: Rows, parrot: Callable[..., Any], tmp_path: Path) -> None:
    model = parrot(lambda prompt: f"A {prompt[-20:]} with pockets and a navy collar")
    found: list[dict[str, Any]] = []
    for name in ("one", "two"):
        metrics = evaluate(model, rows, EvaluateConfig(), tmp_path / name, Events())
        found.append({k: v for k, v in metrics.items() if not k.endswith("per_s")})
    assert found[0] == found[1]
    assert (tmp_path / "one" / "samples.jsonl").read_bytes() == (tmp_path / "two" / "samples.jsonl").read_bytes()


def test_answers_are_greedy_seeded_and_as_long_as_configured(rows: Rows, gold: Any, tmp_path: Path) -> None:
    evaluate(gold, rows, EvaluateConfig(max_tokens=33), tmp_path, Events())
    assert gold.asked[-1] == GenerateOptions(max_tokens=33, temperature=0.0, seed=0)


def test_no_rows_is_an_error_and_leaves_nothing(gold: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There are no rows to evaluate on\. Is held_out\.jsonl empty"):
        evaluate(gold, [], EvaluateConfig(rows="held_out.jsonl"), tmp_path, Events())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "product_cpy"}, r"task is 'product_cpy'\. Did you mean 'product_copy'"),
        ({"max_items": 0}, r"max_items is 0\. Use 1 or more"),
        ({"max_tokens": 0}, r"max_tokens is 0\. Use 1 or more"),
        ({"temperature": -1.0}, r"temperature is -1\.0\. Use 0 to 2"),
        ({"tempreature": 0.5}, r"Unknown key 'evaluate\.tempreature'\. Did you mean 'temperature'"),
    ],
)
def test_a_config_that_cannot_be_is_refused_before_anything_runs(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(EvaluateConfig, values, "evaluate")


def test_samples_that_lack_a_key_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"There is no samples\.jsonl in {tmp_path}"):
        read_samples(tmp_path)
    (tmp_path / "samples.jsonl").write_text(json.dumps({"id": "1", "prompt": "x", "reference": "y", "facts": {}}))
    with pytest.raises(DataError, match=r"samples\.jsonl has a row without 'output'\. Evaluate again"):
        read_samples(tmp_path)
