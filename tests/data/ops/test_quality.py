from __future__ import annotations

import pytest

from danlu.core.errors import ConfigError
from danlu.data.ops.quality import QualityConfig, judge


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("Nice!", "too_short"),
        ("很好", "too_short"),
        ("a 1 2 3 4 5 6 ?? 7 $$ 8 %% 9", "not_words"),
        ("good " * 30, "repetitive"),
        ("这件很好" + "哈" * 12, "repetitive"),
        ("WHY IS THIS SO EXPENSIVE AND SO THIN", "shouting"),
        ("word " * 5 + " ".join(f"w{chr(97 + i)}{chr(97 + j)}" for i in range(26) for j in range(26)) * 4, "too_long"),
        ("This dress is soft and fits well.", None),
        ("这条裙子面料柔软，很显瘦。", None),
    ],
)
def test_a_text_is_judged(text: str, reason: str | None) -> None:
    verdict = judge(text, QualityConfig())
    assert (verdict and verdict[0]) == reason


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"min_words is 9, max_words 3.*Use 0 <= min_words"):
        QualityConfig(min_words=9, max_words=3)
