"""BART's noise: lengths of spans, what stays, and where sentences go."""

from collections import Counter

import numpy as np
import pytest

from danlu.core.errors import ConfigError
from danlu.train.objectives.denoise import DenoiseConfig, damage, infill, shuffle_sentences, span_lengths

MASK = 7


def test_lengths_of_spans_are_poisson() -> None:
    lengths = span_lengths(300_000, 3.0, np.random.default_rng(0))
    assert lengths.sum() == 300_000
    assert lengths.mean() == pytest.approx(3.0, abs=0.02)
    assert lengths.var() == pytest.approx(3.0, abs=0.05)
    assert (lengths == 0).mean() == pytest.approx(np.exp(-3), abs=0.003), "some masks stand for nothing"


def test_what_is_not_hidden_stays_in_order_and_three_tenths_are_gone() -> None:
    ids = np.arange(100, 300)
    for seed in range(50):
        found = infill(ids, np.random.default_rng(seed), DenoiseConfig(), mask_id=MASK)
        kept = found[found != MASK]
        assert kept.size == 140
        assert (np.diff(kept) > 0).all()
        assert (found == MASK).sum() >= 1


def test_tokens_are_hidden_as_often_as_each_other_but_for_the_ends() -> None:
    ids, hidden = np.arange(100, 130), np.zeros(30)
    for seed in range(3000):
        found = infill(ids, np.random.default_rng(seed), DenoiseConfig(), mask_id=MASK)
        hidden += ~np.isin(ids, found)
    share = hidden / 3000
    assert share.mean() == pytest.approx(0.3)
    assert share[4:-4].min() > 0.27
    assert share.max() < 0.36


def test_sentences_change_places_whole() -> None:
    ends = np.arange(100) == 9
    ids = np.array([10, 11, 9, 12, 9, 13, 14, 15])
    orders = Counter(
        tuple(shuffle_sentences(ids, np.random.default_rng(seed), ends).tolist()) for seed in range(600)
    )  # fmt: skip
    sentences = [(10, 11, 9), (12, 9), (13, 14, 15)]
    assert set(orders) == {
        sentences[a] + sentences[b] + sentences[c] for a in range(3) for b in range(3) for c in range(3)
        if len({a, b, c}) == 3
    }  # fmt: skip
    assert min(orders.values()) > 60


def test_without_noise_the_row_is_as_it_was() -> None:
    ids = np.arange(20)
    config = DenoiseConfig(share=0.0, shuffles_sentences=False)
    assert damage(ids, np.random.default_rng(0), config, mask_id=MASK).tolist() == ids.tolist()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"share": 1.0}, r"share is 1\.0\. Use 0 to below 1, such as 0\.3\."),
        ({"mean_length": 0.0}, r"mean_length is 0\.0\. Use a positive number such as 3\.0\."),
    ],
)
def test_impossible_noise_is_refused(options: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        DenoiseConfig(**options)  # pyright: ignore[reportArgumentType]
