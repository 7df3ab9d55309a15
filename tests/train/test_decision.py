"""How far a decision leans to rare labels: known answers."""

from __future__ import annotations

import numpy as np
import pytest

from danlu.train.decision import best_lean
from danlu.train.measures import label_scores


def rows(seed: int, shares: np.ndarray, count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of labels that are drawn from them, and the labels."""
    drawn = np.random.default_rng(seed)
    gold = drawn.choice(len(shares), size=count, p=shares)
    seen = drawn.normal(np.eye(len(shares))[gold] * 1.5)  # one number for each label, higher for the true one
    likely = 1.5 * seen + np.log(shares)
    return likely - np.log(np.exp(likely).sum(-1, keepdims=True)), gold


def test_a_label_that_is_never_named_is_named_after_leaning_to_it_and_macro_f1_rises_on_new_rows() -> None:
    shares = np.array([0.9, 0.07, 0.03])
    lean = best_lean(*rows(1, shares), shares)
    logits, gold = rows(2, shares)
    plain, moved = (logits - x * np.log(shares) for x in (0.0, lean))
    scores = [label_scores(gold, found.argmax(-1), ["a", "b", "c"])["macro_f1"] for found in (plain, moved)]
    assert 0.3 < lean < 1.0
    assert scores[1] > scores[0] + 0.02


def test_logits_that_lean_too_far_already_are_led_back() -> None:
    shares = np.array([0.9, 0.07, 0.03])
    logits, gold = rows(1, shares)
    lean = best_lean(logits, gold, shares)
    assert best_lean(logits - np.log(shares), gold, shares) == pytest.approx(lean - 1.0)


def test_labels_that_are_equally_frequent_or_all_right_are_left_alone() -> None:
    even = np.array([0.5, 0.5])
    assert best_lean(*rows(1, even), even) == pytest.approx(0.0)
    gold = np.array([0, 0, 0, 1])
    assert best_lean(50.0 * np.eye(2)[gold], gold, np.array([0.75, 0.25])) == pytest.approx(0.0)
