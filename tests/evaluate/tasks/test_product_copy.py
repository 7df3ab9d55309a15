"""Coverage and invention by hand. What every task owes is in tests/contracts/test_tasks.py."""

import pytest

from danlu.core.errors import DataError
from danlu.evaluate.metrics import score_all
from danlu.evaluate.tasks.product_copy import plugin

ROW = {
    "id": "a",
    "messages": [
        {"role": "user", "content": "Write product copy."},
        {"role": "assistant", "content": "A navy silk dress with a loose fit for a wedding."},
    ],
    "attributes": {"colour": ["navy"], "material": ["silk"], "fit": ["loose"], "occasion": ["wedding"]},
}


def rates(*outputs: str) -> tuple[float, float]:
    examples = plugin.examples([ROW] * len(outputs))
    scored = score_all(plugin.metrics(examples), outputs, [e.reference for e in examples])
    return scored["coverage"]["value"], scored["invention"]["value"]


@pytest.mark.parametrize(
    ("output", "coverage", "invention"),
    [
        ("A navy silk dress with a loose fit for a wedding.", 1.0, 0.0),
        ("A navy silk dress.", 2 / 4, 0.0),
        ("A navy wool dress.", 1 / 4, 1 / 2),
        ("A red wool dress.", 0.0, 1.0),
        ("Navy, navy and navy again, in silk, lined.", 2 / 4, 1 / 3),  # saying it twice counts once
        ("Lovely.", 0.0, 0.0),
        ("", 0.0, 0.0),
        ("NAVY SILK, Loose-fitting", 3 / 4, 0.0),
    ],
)
def test_coverage_and_invention_by_hand(output: str, coverage: float, invention: float) -> None:
    assert rates(output) == (pytest.approx(coverage, abs=1e-6), pytest.approx(invention, abs=1e-6))


def test_rates_are_over_all_attributes_together_not_a_mean_of_items() -> None:
    coverage, invention = rates("A navy silk dress.", "A red dress.", "")
    assert coverage == pytest.approx(2 / 12, abs=1e-6)
    assert invention == pytest.approx(1 / 3, abs=1e-6)


def test_a_conversation_is_asked_whole_but_for_its_last_answer() -> None:
    system = {"role": "system", "content": "Be brief."}
    (example,) = plugin.examples([{**ROW, "messages": [system, *ROW["messages"]]}])  # pyright: ignore[reportGeneralTypeIssues]
    assert example.prompt == [system, ROW["messages"][0]]  # pyright: ignore[reportIndexIssue]
    assert example.reference == "A navy silk dress with a loose fit for a wedding."


@pytest.mark.parametrize(
    "row", [{**ROW, "messages": ROW["messages"][:1]}, {k: v for k, v in ROW.items() if k != "attributes"}]
)
def test_a_row_without_answer_or_attributes_says_what_a_row_has(row: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"Row 1 \(a\) has no attributes or no reference answer\. A product_copy row"):
        plugin.examples([row])


def test_chinese_copy_is_cut_into_words_for_bleu() -> None:
    row = {**ROW, "messages": [{"role": "user", "content": "写"}, {"role": "assistant", "content": "黑色真丝连衣裙。"}]}
    examples = plugin.examples([row])
    metrics = plugin.metrics(examples)
    score_all(metrics, ["黑色连衣裙。"], ["黑色真丝连衣裙。"])
    assert "tok:zh" in metrics["bleu4"].signature
