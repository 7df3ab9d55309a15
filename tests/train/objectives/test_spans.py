"""Missing spans: published lengths, and that source and target hold the whole row."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.core.errors import ConfigError
from danlu.train.objectives.spans import (
    SpansConfig,
    fill_in,
    hide_spans,
    missing_tokens,
    pair_lengths,
    row_length,
    span_counts,
)

SENTINELS = tuple(range(999, 899, -1))


def test_a_source_of_512_tokens_is_made_of_568_and_has_a_target_of_114() -> None:
    """The numbers of T5's own pre-training."""
    assert row_length(512, SpansConfig()) == 568
    assert pair_lengths(568, SpansConfig()) == (512, 114)


@pytest.mark.parametrize(("length", "missing", "spans"), [(568, 85, 28), (100, 15, 5), (10, 2, 1), (2, 1, 1)])
def test_missing_tokens_and_spans_follow_from_the_length(length: int, missing: int, spans: int) -> None:
    """round(0.15 · length), and round of it by 3."""
    assert span_counts(length, SpansConfig()) == (missing, spans)


def test_the_example_of_the_paper() -> None:
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    is_missing = np.isin(np.arange(10), [2, 3, 8])
    pair = hide_spans(np.arange(10), is_missing, SENTINELS)
    names = {999: "<X>", 998: "<Y>", **dict(enumerate(words))}
    assert [names[i] for i in pair.source] == "Thank you <X> me to your party <Y> week".split()  # noqa: SIM905
    assert [names[i] for i in pair.target] == ["<X>", "for", "inviting", "<Y>", "last"]


@given(
    length=st.integers(2, 300),
    share=st.floats(0.01, 0.9),
    mean=st.floats(1, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_target_put_into_the_source_gives_the_row(length: int, share: float, mean: float, seed: int) -> None:
    config, rng = SpansConfig(share=share, mean_length=mean), np.random.default_rng(seed)
    ids = rng.integers(0, 800, size=length)
    sentinels = range(1300, 900, -1)
    is_missing = missing_tokens(length, rng, config)
    pair = hide_spans(ids, is_missing, sentinels)
    assert fill_in(pair, sentinels).tolist() == ids.tolist()
    assert (int(is_missing.sum()), int(np.isin(pair.source, sentinels).sum())) == span_counts(length, config)
    assert (pair.source.size + 1, pair.target.size + 1) == pair_lengths(length, config)
    assert not is_missing[0]
    assert is_missing[-1]


def test_all_ways_to_lay_spans_are_as_likely() -> None:
    """8 tokens, 4 missing in 2 spans: 3 ways to cut the missing ones times 3 for the rest."""
    config, rng = SpansConfig(share=0.5, mean_length=2.0), np.random.default_rng(0)
    found: dict[tuple[bool, ...], int] = {}
    for _ in range(4500):
        key = tuple(missing_tokens(8, rng, config).tolist())
        found[key] = found.get(key, 0) + 1
    assert len(found) == 9
    assert all(abs(count - 500) < 5 * (500 * 8 / 9) ** 0.5 for count in found.values())


def test_spans_are_three_tokens_long_on_average() -> None:
    rng = np.random.default_rng(1)
    lengths = [
        len(list(group))
        for _ in range(200)
        for value, group in itertools.groupby(missing_tokens(568, rng, SpansConfig()).tolist())
        if value
    ]
    assert np.mean(lengths) == pytest.approx(85 / 28)
    assert max(lengths) > 10


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"share": 1.0}, r"share is 1\.0\. Use a share between 0 and 1"),
        ({"mean_length": 0.5}, r"mean_length is 0\.5\. Use 1 or more\."),
    ],
)
def test_impossible_spans_are_refused(options: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        SpansConfig(**options)
