"""Metrics against sacrebleu's own corpus scores, hand arithmetic and the exact binomial."""

import math
import random

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from danlu.evaluate.metrics import RESAMPLES, Bleu4, ChrF, Metric, Rate, bootstrap, interval, resamples, score_all

EN = [
    "the",
    "a",
    "soft",
    "navy",
    "silk",
    "dress",
    "has",
    "deep",
    "pockets,",
    "and",
    "sleeves",
    "fit",
    "well.",
    "It",
    "is",
    "lined!",
    "don't",
    "100%",
    "worry",
]
ZH = list("这件深蓝色真丝连衣裙面料柔软有口袋版型宽松适合婚礼穿着舒适，。！")


def pairs(words: list[str], glue: str) -> tuple[list[str], list[str]]:
    """Fifty references and outputs that share some of their words, an empty output among them."""
    chance = random.Random(2)
    references = [glue.join(chance.choices(words, k=chance.randrange(3, 30))) for _ in range(50)]
    outputs = [
        glue.join(w if chance.random() < 0.6 else chance.choice(words) for w in (list(r) if glue == "" else r.split()))
        for r in references
    ]
    outputs[7], outputs[11], outputs[13] = "", references[11], "word"
    return outputs, references


@pytest.mark.parametrize(("words", "glue", "tokenize"), [(EN, " ", "13a"), (ZH, "", "zh")])
def test_bleu_of_summed_counts_is_sacrebleus_corpus_score(words: list[str], glue: str, tokenize: str) -> None:
    outputs, references = pairs(words, glue)
    metric, oracle = Bleu4(tokenize=tokenize), BLEU(tokenize=tokenize)
    counts = metric.counts(outputs, references)
    expected = oracle.corpus_score(outputs, [references])
    assert metric.value(counts.sum(axis=0)) == pytest.approx(expected.score, abs=1e-9)
    assert metric.signature == str(oracle.get_signature())
    few = oracle.corpus_score(outputs[:3], [references[:3]])
    assert metric.value(counts[:3].sum(axis=0)) == pytest.approx(few.score, abs=1e-9)
    assert 10 < expected.score < 90


@pytest.mark.parametrize(("words", "glue"), [(EN, " "), (ZH, "")])
def test_chrf_of_summed_counts_is_sacrebleus_corpus_score(words: list[str], glue: str) -> None:
    outputs, references = pairs(words, glue)
    metric, oracle = ChrF(), CHRF()
    counts = metric.counts(outputs, references)
    expected = oracle.corpus_score(outputs, [references])
    assert metric.value(counts.sum(axis=0)) == pytest.approx(expected.score, abs=1e-9)
    assert metric.signature == str(oracle.get_signature())
    assert 10 < expected.score < 90


@pytest.mark.parametrize("metric", [Bleu4(), ChrF()])
def test_the_same_text_scores_100_and_another_0(metric: Metric) -> None:
    texts = ["the navy silk dress has deep pockets", "a soft wool top with long sleeves"]
    assert metric.value(metric.counts(texts, texts).sum(axis=0)) == pytest.approx(100)
    assert metric.value(metric.counts(["7", "8"], texts).sum(axis=0)) == pytest.approx(0, abs=1e-9)


def test_a_rate_is_hits_over_chances_of_all_items_together() -> None:
    metric = Rate("e's over letters", lambda item, output: (output.count("e"), len(output) + item))
    counts = metric.counts(["eel", "", "tea"], ["", "", ""])
    assert counts.tolist() == [[2, 3], [0, 1], [1, 5]]
    assert metric.value(counts.sum(axis=0)) == 3 / 9
    assert metric.value(np.zeros(2)) == 0.0
    assert metric.signature == "e's over letters"


def flips(values: list[int]) -> tuple[Metric, np.ndarray]:
    metric = Rate("ones", lambda item, output: (int(output), 1))
    return metric, metric.counts([str(v) for v in values], [""] * len(values))


def test_the_interval_of_coin_flips_is_that_of_the_exact_binomial() -> None:
    """A bootstrap of n flips with h heads draws from Binomial(n, h/n): its 2.5 and 97.5 % points are known."""
    for heads, flipped in ((30, 100), (5, 50), (180, 200)):
        cumulative, low, high = 0.0, None, None
        for k in range(flipped + 1):
            share = heads / flipped
            cumulative += math.comb(flipped, k) * share**k * (1 - share) ** (flipped - k)
            low = k if low is None and cumulative >= 0.025 else low
            high = k if high is None and cumulative >= 0.975 else high
        assert low is not None
        assert high is not None
        found = interval(*flips([1] * heads + [0] * (flipped - heads)))
        assert found.value == heads / flipped
        assert abs(found.low * flipped - low) <= 1
        assert abs(found.high * flipped - high) <= 1


def test_the_interval_covers_the_truth_about_95_times_in_100() -> None:
    chance = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        found = interval(*flips(chance.binomial(1, 0.4, size=80).tolist()))
        covered += found.low <= 0.4 <= found.high
    assert 182 <= covered <= 198  # 95 % of 200 is 190; three standard deviations are 9


def test_an_interval_of_equal_items_has_no_width() -> None:
    assert vars(interval(*flips([1] * 20))) == {"value": 1.0, "low": 1.0, "high": 1.0}
    one = interval(*flips([0]))
    assert (one.low, one.high) == (0.0, 0.0)


def test_resamples_draw_with_replacement_and_are_the_same_every_time() -> None:
    drawn = resamples(30)
    assert drawn.shape == (RESAMPLES, 30)
    assert set(drawn.sum(axis=1)) == {30.0}
    assert drawn.mean() == pytest.approx(1.0)
    assert drawn.var() == pytest.approx(1 - 1 / 30, abs=0.03)
    assert (drawn == resamples(30)).all()


def test_the_bootstrap_of_a_whole_score_equals_scoring_the_drawn_items() -> None:
    outputs, references = pairs(EN, " ")
    metric = Bleu4()
    samples = bootstrap(metric, metric.counts(outputs, references))
    times = resamples(50)[17].astype(int)
    drawn = [i for i, n in enumerate(times) for _ in range(n)]
    expected = BLEU().corpus_score([outputs[i] for i in drawn], [[references[i] for i in drawn]]).score
    assert samples[17] == pytest.approx(expected, abs=1e-9)


def test_scores_are_plain_rounded_numbers_with_their_interval() -> None:
    outputs, references = pairs(EN, " ")
    scored = score_all({"bleu4": Bleu4(), "chrf": ChrF()}, outputs, references)
    assert set(scored) == {"bleu4", "chrf"}
    for found in scored.values():
        assert list(found) == ["value", "low", "high"]
        assert found["low"] < found["value"] < found["high"]
        assert all(type(number) is float and number == round(number, 6) for number in found.values())
    assert score_all({"bleu4": Bleu4(), "chrf": ChrF()}, outputs, references) == scored
