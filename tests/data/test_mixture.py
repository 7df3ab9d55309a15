from collections import Counter

import pytest

from danlu.data.mixture import Mixture


@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.5], [0.7, 0.2, 0.1], [0.999, 0.001]])
def test_shares_hold_in_every_stretch(weights: list[float]) -> None:
    mixture = Mixture(weights)
    for start in (0, 1000, 12_345):
        counts = Counter(mixture.locate(number)[0] for number in range(start, start + 1000))
        for source, weight in enumerate(weights):
            assert counts[source] == pytest.approx(1000 * weight, abs=5)


def test_each_source_counts_on_without_gaps() -> None:
    mixture = Mixture([0.6, 0.3, 0.1])
    seen: Counter[int] = Counter()
    for number in range(200_000):
        source, inside = mixture.locate(number)
        assert inside == seen[source]
        seen[source] += 1


def test_any_place_is_found_again_whatever_was_asked_before() -> None:
    weights = [0.6, 0.3, 0.1]
    numbers = [5, 300_000, 70_000, 65_535, 65_536, 0]
    mixture = Mixture(weights)
    assert [mixture.locate(n) for n in numbers] == [Mixture(weights).locate(n) for n in numbers]
