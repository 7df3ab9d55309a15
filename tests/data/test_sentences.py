"""Which sentences become copy."""

from __future__ import annotations

import pytest

from danlu.data import sentences


@pytest.mark.parametrize(
    "sentence",
    [
        "The fabric is soft and drapes beautifully.",
        "Great work dress with pockets",
        "It runs true to size and the sleeves are long.",
        "3/4 sleeves with a pretty trim.",
        "面料柔软，版型宽松",
    ],
)
def test_a_sentence_about_the_product_stays(sentence: str) -> None:
    assert sentences.describes_product(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "I love this soft dress.",
        "my daughter wears the skirt",
        "You can wear the dress to work.",
        "Bought the blue top on sale.",
        "The other reviews said the fabric is thin.",
        "Is the fabric soft?",
        "the medium fit and the sleeves are long",
        "the dress is size 6 for 125 lbs",
        "The color is not like the photo.",
        "The lining is itchy.",
        "But the hem is lovely",
        "So beautiful and cheerful",
        "我很喜欢这条裙子的颜色",
        "快递很快，裙子收到了",
        "这条裙子会起球吗？",
    ],
)
def test_a_sentence_about_writer_purchase_or_fault_goes(sentence: str) -> None:
    assert not sentences.describes_product(sentence)


def test_sentences_end_at_marks_breaks_and_ellipses() -> None:
    assert sentences.split("Nice top. So soft!! love it...great fit\nwarm; light") == [
        "Nice top.",
        "So soft!!",
        "love it",
        "great fit",
        "warm",
        "light",
    ]
    assert sentences.split("面料很好。版型宽松！") == ["面料很好。", "版型宽松！"]


def test_a_text_cut_off_at_the_source_loses_its_last_piece() -> None:
    text = "The dress is soft. The sleeves are lon"
    assert sentences.split(text, limit=len(text)) == ["The dress is soft."]
    assert sentences.split(text, limit=500)[-1] == "The sleeves are lon"


def test_the_clause_about_the_product_is_taken_from_a_sentence_about_the_writer() -> None:
    assert sentences.about_product("I love it, the fabric is soft and light.") == ["the fabric is soft and light."]
    assert sentences.about_product("If you size up, the waist is loose.") == []


@pytest.mark.parametrize(
    ("raw", "tidied"),
    [
        ("the fabric is  soft", "The fabric is soft."),
        ("and the fit is lovely!!!", "The fit is lovely!"),
        ("soft , warm,light .", "Soft, warm, light."),
        ("面料柔软", "面料柔软。"),
        ("- ", ""),
    ],
)
def test_tidying_changes_first_letter_spaces_and_final_mark_only(raw: str, tidied: str) -> None:
    assert sentences.tidy(raw) == tidied
    assert sentences.tidy(tidied) == tidied
