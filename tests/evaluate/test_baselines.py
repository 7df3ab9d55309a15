"""Bits of compressors and n-grams, against numbers worked out by hand."""

import math
import random

import pytest

from danlu.evaluate.baselines import END, KneserNey, xz


def test_probabilities_are_those_of_the_formula_worked_out_by_hand() -> None:
    """Bigrams of "ab", "ab", "a": END a 3, a b 2, b END 2, a END 1; one is seen once, two twice, so d = 1 / (1 + 4)."""
    model = KneserNey([b"ab", b"ab", b"a"], order=2)
    a, b = b"ab"
    d = 1 / (1 + 2 * 2)
    # Kinds of symbols before each: a 1, b 1, END 2; two of them once and one twice, so the discount is 2 / (2 + 2).
    lower = 2 / (2 + 2 * 1)
    base = lower * 3 / 4 / 257
    p_a, p_b, p_end = (1 - lower) / 4 + base, (1 - lower) / 4 + base, (2 - lower) / 4 + base
    assert model.probability([END], a) == pytest.approx((3 - d) / 3 + d / 3 * p_a)
    assert model.probability([a], b) == pytest.approx((2 - d) / 3 + d * 2 / 3 * p_b)
    assert model.probability([a], END) == pytest.approx((1 - d) / 3 + d * 2 / 3 * p_end)
    assert model.probability([a], ord("z")) == pytest.approx(d * 2 / 3 * base)
    assert model.probability([ord("z")], b) == pytest.approx(p_b), "an unseen history says nothing"


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_after_any_history_sum_to_one(order: int) -> None:
    generator = random.Random(order)
    documents = [bytes(generator.choices(b"abcd ", k=40)) for _ in range(6)]
    model = KneserNey(documents, order)
    for history in (b"", b"ab", b"dcba", b"zz"):
        framed = ([END] * order + list(history))[len(history) + 1 :]
        assert sum(model.probability(framed, symbol) for symbol in range(257)) == pytest.approx(1.0)


def test_bits_are_the_sum_of_surprises() -> None:
    model = KneserNey([b"abab", b"ba"], order=3)
    found = model.measure([b"ab"])
    a, b = b"ab"
    steps = (([END, END], a), ([END, a], b), ([a, b], END))
    assert found.bits == pytest.approx(-sum(math.log2(model.probability(*step)) for step in steps))
    assert found.text_bytes == 2
    assert found.bits_per_byte == found.bits / 2


def test_random_bytes_cost_eight_bits_and_repeated_text_almost_none() -> None:
    generator = random.Random(0)
    noise = generator.randbytes(5000)
    assert KneserNey([noise], order=1).measure([generator.randbytes(5000)]).bits_per_byte == pytest.approx(8, abs=0.1)
    text = [b"the quick brown fox jumps over the lazy dog"] * 50
    assert KneserNey(text, order=5).measure(text[:5]).bits_per_byte < 0.2


def test_a_higher_order_tells_english_better() -> None:
    words = ["a", "cat", "and", "dog", "sat", "on", "the", "mat", "saw", "with"]
    generator = random.Random(1)
    texts = [" ".join(generator.choices(words, k=30)).encode() for _ in range(40)]
    found = [KneserNey(texts[8:], order).measure(texts[:8]).bits_per_byte for order in (1, 2, 4)]
    assert found[0] > found[1] > found[2]


def test_xz_knows_what_came_before() -> None:
    generator = random.Random(2)
    noise = [generator.randbytes(3000) for _ in range(2)]
    assert xz([noise[0]], [noise[1]]).bits_per_byte == pytest.approx(8, abs=0.1)
    assert xz(noise, [noise[0]]).bits_per_byte < 0.5
