"""Near duplicates at known similarity."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from danlu.core.errors import ConfigError
from danlu.data.ops.near_dedup import NearDedupConfig, _shingles, apply

ENGLISH = (
    "this lovely cotton dress has long sleeves a round neckline and two deep pockets that hold a phone and keys "
    "with a soft lining and a hem that falls just below the knee for work or for a summer party outdoors"
)
CHINESE = "这条裙子面料柔软舒适版型宽松很显瘦颜色也特别正做工精细没有线头夏天穿着非常凉快上班和聚会都可以穿"


def _drops(texts: list[str], config: NearDedupConfig | None = None) -> list[str | None]:
    table = pa.table({"id": [f"r{i}" for i in range(len(texts))], "text": texts})
    return list(apply(table, config or NearDedupConfig()).details)


def test_one_changed_word_at_the_end_is_a_near_duplicate_and_the_longer_text_stays() -> None:
    assert _drops([ENGLISH, ENGLISH + "!!", "something else entirely, a warm wool coat"]) == ["r1 (1.00)", None, None]


def test_chinese_is_compared_by_characters() -> None:
    changed = CHINESE[:-1] + "搭"
    assert _drops([CHINESE, changed])[1] is not None
    assert _drops([CHINESE, CHINESE[::-1]]) == [None, None]


def test_texts_that_differ_in_numbers_are_two_texts() -> None:
    texts = [f"order {i} has {i * 7} items of size {i % 9} at {i * 3} each in box {i * 11}" for i in range(200)]
    assert _drops(texts) == [None] * 200


def test_pairs_at_the_threshold_are_found_against_brute_force() -> None:
    draw = random.Random(0)
    words = [f"w{chr(97 + i)}{chr(97 + j)}" for i in range(20) for j in range(20)]
    texts = [" ".join(draw.choices(words, k=60)) for _ in range(60)]
    for text in texts[:30]:
        tokens = text.split()
        tokens[draw.randrange(60)] = "changed"
        texts.append(" ".join(tokens))
    found = {frozenset((i, int(detail.split()[0][1:]))) for i, detail in enumerate(_drops(texts)) if detail}
    shingles = [set(_shingles(text.split(), 3)) for text in texts]
    pairs = {
        frozenset((i, j))
        for i in range(len(texts))
        for j in range(i)
        if len(shingles[i] & shingles[j]) >= 0.8 * len(shingles[i] | shingles[j])
    }
    assert len(pairs) == 30
    assert found == pairs


def test_a_text_shorter_than_a_shingle_is_one_shingle() -> None:
    assert list(_shingles(["nice", "top"], 3)) == [("nice", "top")]
    assert _drops(["nice top", "nice top", "nice"]) == [None, "r0 (1.00)", None]


def test_a_threshold_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"threshold is 1\.5.*Use more than 0"):
        NearDedupConfig(threshold=1.5)
    with pytest.raises(ConfigError, match="below 1"):
        NearDedupConfig(bands=0)
