from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import DataError
from danlu.core.events import Events
from danlu.core.files import read_json, write_json
from danlu.evaluate.compare import compare
from danlu.evaluate.metrics import RESAMPLES
from danlu.evaluate.run import EvaluateConfig, evaluate

Rows = list[dict[str, Any]]
Evaluated = Callable[..., Path]


@pytest.fixture
def evaluated(rows: Rows, parrot: Callable[..., Any], tmp_path: Path) -> Evaluated:
    """Make an evaluation's folder: how the model speaks, and on which rows."""

    def make(name: str, speak: Callable[[str], str], chosen: Rows | None = None) -> Path:
        evaluate(parrot(speak), chosen or rows, EvaluateConfig(), tmp_path / name, Events())
        return tmp_path / name

    return make


def words(prompt: str) -> str:
    return f"This {prompt.rpartition(' ')[0][-12:]} thing has pockets."


def gold(prompt: str) -> str:
    return f"This {prompt.rpartition('Title: ')[2]} has a loose fit and deep pockets."


def test_the_same_answers_differ_by_nothing_and_neither_is_better(evaluated: Evaluated) -> None:
    compared = compare(evaluated("a", words), evaluated("b", words))
    assert set(compared) == {"bleu4", "chrf", "coverage", "invention"}
    for found in compared.values():
        assert (found["difference"], found["low"], found["high"]) == (0.0, 0.0, 0.0)
        assert found["p_higher"] == found["p_lower"] == 1.0
        assert found["is_within_baseline"]


def test_clearly_better_answers_are_better_with_the_smallest_p_there_is(evaluated: Evaluated) -> None:
    worse, better = evaluated("worse", words), evaluated("better", gold)
    for name in ("bleu4", "chrf", "coverage"):
        found, back = compare(worse, better)[name], compare(better, worse)[name]
        assert found["p_higher"] == 1 / (RESAMPLES + 1) <= 0.001
        assert found["p_lower"] == 1.0
        assert 0 < found["low"] <= found["difference"] <= found["high"]
        assert not found["is_within_baseline"]
        assert back["difference"] == -found["difference"]
        assert (back["p_lower"], back["p_higher"]) == (found["p_higher"], found["p_lower"])


def test_the_difference_is_that_of_the_two_scores(evaluated: Evaluated) -> None:
    folders = evaluated("a", words), evaluated("b", gold)
    before, after = (read_json(folder / "metrics.json") for folder in folders)
    for name, found in compare(*folders).items():
        assert found["difference"] == pytest.approx(after[name]["value"] - before[name]["value"], abs=2e-6)


def test_a_change_of_one_item_in_fifty_is_not_significant(evaluated: Evaluated) -> None:
    changed = evaluated("b", lambda prompt: words(prompt) + (" Loose." if "white silk top" in prompt else ""))
    found = compare(evaluated("a", words), changed)["coverage"]
    assert found["difference"] > 0
    assert found["p_higher"] > 0.05


def test_comparing_is_repeatable(evaluated: Evaluated) -> None:
    folders = evaluated("a", words), evaluated("b", lambda prompt: words(prompt) + " Loose fit.")
    assert compare(*folders) == compare(*folders)


def test_evaluations_of_other_items_cannot_be_compared(evaluated: Evaluated, rows: Rows) -> None:
    with pytest.raises(DataError, match=r"different items \(48 and 47; first different: \(after .*Use the same"):
        compare(evaluated("a", words), evaluated("b", words, rows[:-1]))
    other = [{**row, "attributes": {"fit": ["snug"]}} if row["id"] == "row-5" else row for row in rows]
    with pytest.raises(DataError, match=r"different items \(48 and 48; first different: row-5\)"):
        compare(evaluated("c", words), evaluated("d", words, other))


def test_evaluations_of_another_task_version_cannot_be_compared(evaluated: Evaluated) -> None:
    old, new = evaluated("a", words), evaluated("b", words)
    metrics = read_json(old / "metrics.json")
    write_json(old / "metrics.json", {**metrics, "task": {"name": "product_copy", "version": 0}})
    with pytest.raises(DataError, match=r"'version': 0\} and .*'version': 1\}\. Compare runs of one task version"):
        compare(old, new)


def test_a_folder_without_an_evaluation_is_named(evaluated: Evaluated, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(DataError, match=r"There is no metrics\.json in .*model\. Is this the right folder"):
        compare(evaluated("a", words), tmp_path / "model")
    write_json(tmp_path / "model" / "metrics.json", {"items_per_s": 3})
    with pytest.raises(DataError, match=r"model holds no evaluation\. Compare the artifacts of two evaluate stages"):
        compare(evaluated("a", words), tmp_path / "model")
