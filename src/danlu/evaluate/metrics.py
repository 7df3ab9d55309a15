"""Metrics as sums: each answer gives a row of counts, a score is a function of their sum.

That makes a bootstrap over items one matrix product. BLEU and chrF are sacrebleu's own counts and formulas. Knows no
tasks and no models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

RESAMPLES = 1000
"""Bootstrap samples of every interval and p-value."""
_SEED = 12_345


class Metric(Protocol):
    """A score over a set of answers."""

    signature: str
    """Everything needed to compute the same number elsewhere."""

    def counts(self, outputs: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """One row of counts an answer: (items, counts)."""
        ...

    def value(self, total: np.ndarray) -> float:
        """The score of summed counts: (counts,) → a number."""
        ...


class Bleu4:
    """Corpus BLEU with n-grams up to 4 (Papineni et al. 2002), 0 to 100, from sacrebleu."""

    def __init__(self, tokenize: str = "13a") -> None:
        self._bleu = BLEU(tokenize=tokenize)
        self.signature = ""

    def counts(self, outputs: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """Matches and n-grams of each order, output and reference length."""
        scores = [self._bleu.corpus_score([o], [[r]]) for o, r in zip(outputs, references, strict=True)]
        self.signature = str(self._bleu.get_signature())
        return np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in scores], dtype=np.float64)

    def value(self, total: np.ndarray) -> float:
        """Smoothing as sacrebleu's default (exp)."""
        numbers = [int(n) for n in total]
        score = BLEU.compute_bleu(numbers[:4], numbers[4:8], numbers[8], numbers[9], smooth_method="exp")
        return score.score


class ChrF:
    """Character n-gram F-score (Popović 2015), 0 to 100, from sacrebleu."""

    def __init__(self) -> None:
        self._chrf = CHRF()
        self.signature = ""

    def counts(self, outputs: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """Characters n-grams of output, reference and both, by order."""
        rows = self._chrf._extract_corpus_statistics(list(outputs), [list(references)])
        self._chrf.corpus_score(list(outputs[:1]), [list(references[:1])])
        self.signature = str(self._chrf.get_signature())
        return np.array(rows, dtype=np.float64)

    def value(self, total: np.ndarray) -> float:
        """F with beta 2 over all orders."""
        return self._chrf._compute_score_from_stats([int(n) for n in total]).score


class Rate:
    """A share of two counts, 0 to 1; ``count`` gives (hits, chances) for each item by its index and output."""

    def __init__(self, signature: str, count: Callable[[int, str], tuple[int, int]]) -> None:
        self.signature = signature
        self._count = count

    def counts(self, outputs: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """Hits and chances."""
        return np.array([self._count(i, output) for i, output in enumerate(outputs)], dtype=np.float64)

    def value(self, total: np.ndarray) -> float:
        """Hits a chance; 0 when there was none."""
        return float(total[0] / total[1]) if total[1] else 0.0


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A score with its 95 % bootstrap interval over items."""

    value: float
    low: float
    high: float


def resamples(num_items: int) -> np.ndarray:
    """How often each item is drawn in each bootstrap sample: (RESAMPLES, items). The same for every model."""
    generator = np.random.default_rng(_SEED)
    return generator.multinomial(num_items, np.full(num_items, 1.0 / num_items), size=RESAMPLES).astype(np.float64)


def bootstrap(metric: Metric, counts: np.ndarray) -> np.ndarray:
    """The score of every bootstrap sample: (RESAMPLES,). Paired across models by construction."""
    return np.array([metric.value(total) for total in resamples(len(counts)) @ counts])


def interval(metric: Metric, counts: np.ndarray) -> Interval:
    """The score and its 95 % percentile interval (Efron 1979; for BLEU: Koehn 2004)."""
    low, high = np.percentile(bootstrap(metric, counts), [2.5, 97.5])
    return Interval(value=metric.value(counts.sum(axis=0)), low=float(low), high=float(high))


def score_all(
    metrics: Mapping[str, Metric], outputs: Sequence[str], references: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Every metric's value and interval, by name, as plain numbers."""
    scored: dict[str, dict[str, float]] = {}
    for name, metric in metrics.items():
        found = interval(metric, metric.counts(outputs, references))
        scored[name] = {key: round(number, 6) for key, number in vars(found).items()}
    return scored
