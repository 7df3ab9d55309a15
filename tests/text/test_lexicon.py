"""The attribute lexicon against sentences with known attributes."""

from __future__ import annotations

import pytest

from danlu.text import lexicon


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A navy-blue cotton dress", {"material": ["cotton"], "colour": ["navy"]}),
        ("Lace over cotton, then more lace", {"material": ["lace", "cotton"]}),
        ("runs a little bit large", {"size": ["runs large"]}),
        ("RUNS VERY SMALL", {"size": ["runs small"]}),
        ("an A-line skirt, high-waisted", {"fit": ["a-line", "high waisted"]}),
        ("faux leather trim", {"material": ["faux leather"]}),
        ("a black tie event", {"occasion": ["formal"]}),
        ("not cotton but silk", {"material": ["silk"]}),
        ("it isn’t too boxy", {}),
        ("without being clingy", {}),
        ("this will work, i read it down there", {}),
        ("perfect for work and summer", {"occasion": ["work", "summer"]}),
        ("cottonwood and scarlet redness", {}),
        ("这件纯棉连衣裙，修身，适合通勤", {"material": ["cotton"], "fit": ["fitted"], "occasion": ["work"]}),
        ("不是纯棉，是真丝", {"material": ["silk"]}),
        ("V领黑色毛衣不显胖", {"fit": ["v-neck"], "colour": ["black"]}),
        ("", {}),
    ],
)
def test_attributes_are_found(text: str, expected: dict[str, list[str]]) -> None:
    assert lexicon.find(text) == expected


def test_every_canonical_value_is_found_in_one_of_its_own_forms() -> None:
    pattern, canonical = lexicon._compiled()
    found = {meaning for form, meaning in canonical.items() if pattern.search(form)}
    missing = set(canonical.values()) - found - {("fit", "a-line"), ("size", "tall")}
    assert missing == set()


def test_mentions_agrees_with_find() -> None:
    text = "Soft navy cotton for the office"
    assert lexicon.mentions(text, "material", "cotton")
    assert lexicon.mentions(text, "occasion", "work")
    assert not lexicon.mentions(text, "colour", "cotton")


def test_each_key_has_values() -> None:
    assert lexicon.KEYS == ("material", "size", "fit", "colour", "occasion")
    assert all(len(lexicon.values(key)) >= 10 for key in lexicon.KEYS)
    assert "navy" in lexicon.values("colour")
