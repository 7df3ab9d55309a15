"""Which label a classifier names: how far its decision leans towards rare labels. Plain numbers; knows no model."""

from __future__ import annotations

import numpy as np

from danlu.train.measures import label_scores

_LEANS = np.linspace(-1.0, 1.5, 51)
_WINDOW = 5
"""Leans whose scores are averaged, so that one lucky row does not decide."""


def best_lean(logits: np.ndarray, gold: np.ndarray, shares: np.ndarray) -> float:
    """The τ for which argmax(logits - τ log shares) has the best macro-F1 (Menon et al. 2021, section 4.1).

    logits: (B, C); gold: indices of labels, (B,); shares: of the labels among the training rows, (C,). 0 changes
    nothing; 1 undoes the shares, if logits are log-probabilities; below 0 leans towards frequent labels. Scores of
    neighbouring leans are averaged; of equally good ones, the one closest to 0 is taken.
    """
    names = [str(index) for index in range(logits.shape[1])]
    moves = np.log(shares)
    scores = [label_scores(gold, (logits - lean * moves).argmax(-1), names)["macro_f1"] for lean in _LEANS]
    padded = np.pad(scores, _WINDOW // 2, mode="edge")
    smooth = np.convolve(padded, np.full(_WINDOW, 1 / _WINDOW), mode="valid")
    best = np.flatnonzero(smooth >= smooth.max() - 1e-9)
    return float(_LEANS[best[np.abs(_LEANS[best]).argmin()]])
