"""Scores against arithmetic done by hand and published examples."""

from __future__ import annotations

import numpy as np
import pytest

from danlu.train.measures import entities, entity_scores, label_scores, rank_correlation, rank_scores, set_scores


def test_label_scores_are_known_numbers() -> None:
    gold, guessed = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 2])
    found = label_scores(gold, guessed, ["a", "b", "c", "never"])
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["per_label"]["a"] == {"precision": 1.0, "recall": 2 / 3, "f1": 0.8, "rows": 3}
    assert found["per_label"]["b"]["f1"] == 0.5
    assert found["per_label"]["c"] == {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "rows": 1}
    assert found["macro_f1"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)


def test_set_scores_are_known_numbers() -> None:
    gold = np.array([[1, 0], [1, 1], [0, 0]], dtype=bool)
    guessed = np.array([[1, 0], [1, 0], [0, 1]], dtype=bool)
    found = set_scores(gold, guessed, ["a", "b"])
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["micro_f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert found["macro_f1"] == pytest.approx((1.0 + 0.0) / 2)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("I-PER I-LOC I-LOC", [("PER", 0, 1), ("LOC", 1, 3)]),
        ("O I-PER O I-PER", [("PER", 1, 2), ("PER", 3, 4)]),
        ("B-X E-X I-X S-X S-X", [("X", 0, 2), ("X", 2, 3), ("X", 3, 4), ("X", 4, 5)]),
        ("PER PER O LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("O O", []),
    ],
)
def test_entities_are_read_as_by_conlls_scorer(tags: str, expected: list[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == expected


def test_an_entity_counts_only_with_the_right_bounds_and_label() -> None:
    """The example of seqeval's README: one of two entities is found, one more is wrong in its bounds."""
    gold = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    guessed = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    found = entity_scores(gold, guessed)
    assert (found["precision"], found["recall"], found["f1"], found["entities"]) == (0.5, 0.5, 0.5, 2)
    assert found["per_label"]["PER"]["f1"] == 1.0
    assert found["per_label"]["MISC"]["f1"] == 0.0


def test_rank_scores_are_known_numbers() -> None:
    assert rank_scores([1, 2, 11, 4]) == pytest.approx(
        {"recall_at_1": 0.25, "recall_at_10": 0.75, "mrr": (1 + 1 / 2 + 1 / 11 + 1 / 4) / 4}
    )


def test_rank_correlation_shares_the_ranks_of_equals() -> None:
    first, second = [0.1, 0.4, 0.4, 0.9, -1.0], [2.0, 1.0, 3.0, 3.0, 0.0]  # ranks 2 3.5 3.5 5 1 and 3 2 4.5 4.5 1
    assert rank_correlation(first, second) == pytest.approx(7.25 / 9.5)
    assert rank_correlation([1.0, 1.0], [1.0, 2.0]) == 0.0
