"""The contract of every file in evaluate/tasks/: versioned, right about gold answers, wrong about junk, repeatable.

A new task adds one entry to ROWS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from danlu.core import plugins
from danlu.core.errors import DataError
from danlu.evaluate.metrics import Metric, score_all
from danlu.evaluate.tasks import Example, Task

EN = [
    ("Write product copy.\nTitle: Navy dress", "A navy silk dress, lined, with a loose fit.",
     {"colour": ["navy"], "material": ["silk", "lined"], "fit": ["loose"]}),
    ("Write product copy.\nTitle: Wool coat", "This black wool coat is warm and true to size.",
     {"colour": ["black"], "material": ["wool", "warm"], "size": ["true to size"]}),
    ("Write product copy.\nTitle: Skirt", "A soft green velvet skirt for the next party.",
     {"colour": ["green"], "material": ["soft", "velvet"], "occasion": ["party"]}),
]  # fmt: skip
ZH = [
    ("写商品文案。\n标题：连衣裙", "黑色真丝连衣裙，面料柔软，版型宽松。",
     {"colour": ["black"], "material": ["silk", "soft"], "fit": ["loose"]}),
    ("写商品文案。\n标题：毛衣", "白色羊绒毛衣，保暖修身。",
     {"colour": ["white"], "material": ["cashmere", "warm"], "fit": ["fitted"]}),
]  # fmt: skip


def product_copy(rows: Sequence[tuple[str, str, dict[str, list[str]]]]) -> list[dict[str, Any]]:
    return [
        {
            "id": str(i),
            "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}],
            "attributes": attributes,
        }
        for i, (prompt, answer, attributes) in enumerate(rows)
    ]


ROWS: dict[str, list[list[dict[str, Any]]]] = {"product_copy": [product_copy(EN), product_copy(ZH)]}
BEST: dict[str, dict[str, float]] = {"product_copy": {"bleu4": 100, "chrf": 100, "coverage": 1, "invention": 0}}
CASES = [(name, rows) for name, languages in ROWS.items() for rows in languages]


def scored(task: Task, examples: Sequence[Example], outputs: Sequence[str]) -> dict[str, float]:
    metrics = task.metrics(examples)
    return {name: s["value"] for name, s in score_all(metrics, outputs, [e.reference for e in examples]).items()}


def test_every_task_is_under_this_contract() -> None:
    assert plugins.names("evaluate.tasks") == sorted(ROWS) == sorted(BEST)


@pytest.fixture(params=CASES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CASES)])
def case(request: pytest.FixtureRequest) -> tuple[Task, list[dict[str, Any]]]:
    name, rows = request.param
    return plugins.load("evaluate.tasks", name), rows


def test_a_task_has_its_files_name_and_a_version(case: tuple[Task, list[dict[str, Any]]]) -> None:
    task, rows = case
    assert task.name in ROWS
    assert task.version >= 1
    metrics: Mapping[str, Metric] = task.metrics(task.examples(rows))
    assert set(metrics) == set(BEST[task.name])


def test_every_metric_has_a_signature_after_scoring_and_ours_name_the_version(
    case: tuple[Task, list[dict[str, Any]]],
) -> None:
    task, rows = case
    examples = task.examples(rows)
    metrics = task.metrics(examples)
    score_all(metrics, [e.reference for e in examples], [e.reference for e in examples])
    assert all(metric.signature for metric in metrics.values())
    assert all("version:" in m.signature or f"v:{task.version}" in m.signature for m in metrics.values())


def test_the_answer_is_not_in_the_prompt(case: tuple[Task, list[dict[str, Any]]]) -> None:
    task, rows = case
    examples = task.examples(rows)
    assert len({example.id for example in examples}) == len(rows)
    for example in examples:
        assert example.reference
        assert example.reference not in str(example.prompt)


def test_gold_answers_have_the_best_scores(case: tuple[Task, list[dict[str, Any]]]) -> None:
    task, rows = case
    examples = task.examples(rows)
    assert scored(task, examples, [e.reference for e in examples]) == pytest.approx(BEST[task.name], abs=1e-4)


@pytest.mark.parametrize("junk", ["", "7 7 7", "???"])
def test_junk_has_the_worst(junk: str, case: tuple[Task, list[dict[str, Any]]]) -> None:
    task, rows = case
    examples = task.examples(rows)
    found = scored(task, examples, [junk] * len(examples))
    assert found["coverage"] == 0
    assert found["bleu4"] == pytest.approx(0, abs=0.1)
    assert found["chrf"] < 1


def test_rows_and_scores_are_repeatable(case: tuple[Task, list[dict[str, Any]]]) -> None:
    task, rows = case
    assert task.examples(rows) == task.examples(rows)
    examples = task.examples(rows)
    outputs = [e.reference[::2] for e in examples]
    assert scored(task, examples, outputs) == scored(task, examples, outputs)


@pytest.mark.parametrize("name", sorted(ROWS))
@pytest.mark.parametrize("row", [{}, {"id": "x", "messages": []}, {"messages": "text"}, {"messages": [1, 2]}])
def test_a_row_without_what_the_task_needs_is_named(name: str, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=rf"Row 2 \({row.get('id', 'no id')}\) has no"):
        plugins.load("evaluate.tasks", name).examples([*ROWS[name][0][:1], row])
