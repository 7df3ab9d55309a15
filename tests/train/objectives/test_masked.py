"""Hidden tokens: how many, what becomes of them, and that nothing else changes."""

import numpy as np
import pytest

from danlu.core.errors import ConfigError
from danlu.train.objectives.masked import MaskedConfig, mask_tokens

MASK, VOCABULARY = 3, 1000
SPECIAL = np.arange(VOCABULARY) < 5


def row(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, VOCABULARY, size=length)


def test_what_was_hidden_put_back_gives_the_row() -> None:
    for seed in range(20):
        ids = row(64, seed)
        found = mask_tokens(ids, np.random.default_rng(seed), MaskedConfig(), mask_id=MASK, is_special=SPECIAL)
        restored = found.ids.copy()
        restored[found.places] = found.targets
        assert restored.tolist() == ids.tolist()
        assert found.places.tolist() == sorted(set(found.places.tolist()))
        untouched = np.setdiff1d(np.arange(64), found.places)
        assert (found.ids[untouched] == ids[untouched]).all()


@pytest.mark.parametrize(("length", "asked"), [(1, 1), (3, 1), (10, 2), (100, 15), (128, 19)])
def test_the_share_is_rounded_and_one_at_least(length: int, asked: int) -> None:
    """max(1, round(0.15 · length)), as in the published procedure."""
    found = mask_tokens(
        row(length), np.random.default_rng(0), MaskedConfig(), mask_id=MASK, is_special=SPECIAL
    )  # fmt: skip
    assert found.places.size == asked


def test_eight_in_ten_are_masked_one_is_random_and_one_stays() -> None:
    ids = row(100_000)
    found = mask_tokens(ids, np.random.default_rng(1), MaskedConfig(), mask_id=MASK, is_special=SPECIAL)
    seen = found.ids[found.places]
    count = found.places.size
    assert count == 15_000
    masked, stayed = seen == MASK, seen == found.targets
    assert masked.mean() == pytest.approx(0.8, abs=3 * (0.8 * 0.2 / count) ** 0.5)
    assert stayed.mean() == pytest.approx(0.1 + 0.1 / 995, abs=3 * (0.1 * 0.9 / count) ** 0.5)
    random = seen[~masked & ~stayed]
    assert random.min() >= 5, "special tokens are never put in"
    assert np.unique(random).size > 700


def test_special_tokens_are_never_hidden() -> None:
    ids = np.array([1, 50, 60, 2, 1, 70, 2])
    places: set[int] = set()
    for seed in range(50):
        found = mask_tokens(ids, np.random.default_rng(seed), MaskedConfig(), mask_id=MASK, is_special=SPECIAL)
        places |= set(found.places.tolist())
    assert places == {1, 2, 5}
    nothing = mask_tokens(
        np.array([1, 2]), np.random.default_rng(0), MaskedConfig(), mask_id=MASK, is_special=SPECIAL
    )  # fmt: skip
    assert (nothing.ids.tolist(), nothing.places.size) == ([1, 2], 0)


def test_words_are_hidden_whole() -> None:
    """Ids from 500 on go on the word before them; a special token ends a word."""
    begins = np.arange(VOCABULARY) < 500
    ids = np.array([1, 10, 600, 700, 11, 12, 800, 2, 900, 13, 14, 15, 16, 17, 18])
    words = [{1, 2, 3}, {4}, {5, 6}, {8}, *({place} for place in range(9, 15))]
    config = MaskedConfig(share=0.25, whole_words=True)
    hidden: set[int] = set()
    for seed in range(100):
        found = mask_tokens(
            ids, np.random.default_rng(seed), config, mask_id=MASK, is_special=SPECIAL, begins_word=begins
        )
        places = set(found.places.tolist())
        assert all(word <= places or not word & places for word in words)
        assert 1 <= len(places) <= 3
        hidden |= places
    assert hidden == set().union(*words)


def test_a_row_that_is_one_word_is_hidden_whole() -> None:
    begins = np.arange(VOCABULARY) < 500
    ids = np.array([10, 600, 700, 800])
    config = MaskedConfig(whole_words=True)
    found = mask_tokens(ids, np.random.default_rng(0), config, mask_id=MASK, is_special=SPECIAL, begins_word=begins)
    assert found.places.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"share": 0.0}, r"share is 0\.0\. Use a share between 0 and 1, such as 0\.15\."),
        ({"masked": 0.9, "random": 0.2}, r"masked is 0\.9, random 0\.2\. Use shares of 0 to 1 that sum to 1 at most\."),
    ],
)
def test_impossible_shares_are_refused(options: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        MaskedConfig(**options)  # pyright: ignore[reportArgumentType]
