"""The masker against written-out examples, in English and beside Han characters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.text.pii import mask

RESIDENT_ID = "11010519491231002X"  # the example number of the standard GB 11643


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("邮箱zhangsan@corp.com.cn请联系", "邮箱[EMAIL]请联系"),
        ("write to a.b+c@mail.example.org.", "write to [EMAIL]."),
        ("ｍａｉｌ：ａ＠ｂ．ｃｏｍ谢谢", "ｍａｉｌ：[EMAIL]谢谢"),
        ("电话13812345678谢谢", "电话[PHONE]谢谢"),
        ("＋８６ １３８１２３４５６７８", "[PHONE]"),
        ("座机010-62345678转", "座机[PHONE]转"),
        ("call (212) 555-0187 now", "call [PHONE] now"),
        ("call 212-555-0187", "call [PHONE]"),
        ("ring +44 20 7946 0958 today", "ring [PHONE] today"),
        (f"身份证{RESIDENT_ID}号", "身份证[ID]号"),
        ("卡号6222 0212 3456 7894。", "卡号[CARD]。"),
        ("card 4111-1111-1111-1111", "card [CARD]"),
        ("来自192.168.1.20的请求", "来自[IP]的请求"),
        ("见https://shop.example/a?b=1。好", "见[URL]。好"),
        ("see www.example.com, please", "see [URL], please"),
        ("key sk-abcdefghijklmnop1234567890 leaked", "key [SECRET] leaked"),
        ("AKIAIOSFODNN7EXAMPLE是密钥", "[SECRET]是密钥"),
        ("密码：hunter2hunter2 别告诉别人", "[SECRET] 别告诉别人"),
    ],
)
def test_personal_data_is_masked(text: str, expected: str) -> None:
    assert mask(text).text == expected


@pytest.mark.parametrize(
    "text",
    [
        "i wear a 34b, am 5'8\" and 125 lbs, usually 28/29 or 0p",
        "measures 36-24-36, size 10-12, 105-110lbs, 5 ft 2.5",
        "paid $108.00 on 12/25/2017 for style 4130084872",
        "尺码165/88A，体重105斤，身高160cm，满300减50",
        "订单号202311210000123456 共12件",
        "it's 100% cotton, washed at 30-40 degrees 1-2 times",
        "version 1.2.3 @ home",
    ],
)
def test_sizes_prices_and_measures_stay(text: str) -> None:
    assert mask(text).text == text
    assert mask(text).counts == {}


def test_a_number_with_a_wrong_check_digit_is_no_id_and_no_card() -> None:
    assert mask("110105194912310021").counts == {}
    assert mask("4111 1111 1111 1112").counts == {}


def test_an_id_with_an_impossible_birth_date_is_none() -> None:
    assert "ID" not in mask("110105194913310020").counts


def test_counts_tell_how_often_each_kind_was_found() -> None:
    masked = mask("a@b.com, c@d.org, 13812345678")
    assert masked.counts == {"EMAIL": 2, "PHONE": 1}
    assert masked.text == "[EMAIL], [EMAIL], [PHONE]"


@given(st.text(alphabet=st.sampled_from("a@.中 0123456789-＠８＋+[]:/w密码kX"), max_size=60))
def test_masking_twice_changes_nothing_more(text: str) -> None:
    once = mask(text).text
    assert mask(once).text == once


@given(st.text(max_size=80))
def test_text_without_findings_comes_back_as_it_was(text: str) -> None:
    masked = mask(text)
    assert masked.counts or masked.text == text


def test_a_long_hostile_text_takes_no_long_time() -> None:
    for piece in ("a.", "1 ", "1-", "a@", "sk-", "eyJ", "-----BEGIN PRIVATE KEY-----", "+1(", "x@a.b"):
        mask(piece * 5000)
