from danlu.data.words import is_chinese, num_units, units


def test_a_word_or_a_han_character_is_one_unit() -> None:
    assert units("It's 100% 纯棉, well-made!") == ["It's", "100", "纯", "棉", "well-made"]
    assert num_units("这件T恤很好") == 6


def test_chinese_is_told_from_english_with_some_han() -> None:
    assert is_chinese("这件T恤 good")
    assert not is_chinese("a very nice and warm coat 好")
    assert not is_chinese("")
