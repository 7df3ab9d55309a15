"""Masks personal data and secrets in English and Chinese text: checksums decide wherever a kind has one.

Recognisers see the text after NFKC (full-width digits and letters become plain ones) and their spans are carried back
to the text as it was. Borders are ASCII look-arounds, never ``\\b``: Han characters are word characters, and
``邮箱zhang@corp.cn请联系`` has no word border at the address.

Does not know names or postal addresses, and never returns or logs what it masked: only how often each kind occurred.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stdnum import luhn
from stdnum.cn import ric
from stdnum.exceptions import ValidationError


@dataclass(frozen=True, kw_only=True)
class Masked:
    """A text without personal data, and how many of each kind were replaced."""

    text: str
    counts: dict[str, int]


@dataclass(frozen=True)
class _Recogniser:
    kind: str
    pattern: re.Pattern[str]
    is_valid: Callable[[str], bool] = lambda _: True


def mask(text: str) -> Masked:
    """Replace each finding by ``[KIND]``, for example ``[EMAIL]``. Masking a masked text changes nothing."""
    folded, offsets = _fold(text)
    spans = _find(folded) if _MAYBE.search(folded) else []
    if not spans:
        return Masked(text=text, counts={})
    pieces: list[str] = []
    end = 0
    for start, stop, kind in spans:
        pieces += [text[end : offsets[start]], f"[{kind}]"]
        end = offsets[stop - 1] + 1
    pieces.append(text[end:])
    return Masked(text="".join(pieces), counts=dict(sorted(Counter(kind for *_, kind in spans).items())))


def _fold(text: str) -> tuple[str, Sequence[int]]:
    """The text after NFKC, character by character, and for each of its characters the index it came from."""
    if text.isascii():
        return text, range(len(text))
    characters: list[str] = []
    offsets: list[int] = []
    for index, character in enumerate(text):
        folded = unicodedata.normalize("NFKC", character)
        characters.append(folded)
        offsets += [index] * len(folded)
    return "".join(characters), offsets


def _find(folded: str) -> list[tuple[int, int, str]]:
    """Spans in order, none overlapping; where two recognisers meet, the one listed first wins."""
    taken: list[tuple[int, int, str]] = []
    for recogniser in _RECOGNISERS:
        for match in recogniser.pattern.finditer(folded):
            start, stop = match.span()
            if any(start < other_stop and other_start < stop for other_start, other_stop, _ in taken):
                continue
            if recogniser.is_valid(match.group()):
                taken.append((start, stop, recogniser.kind))
    return sorted(taken)


def _is_resident_id(number: str) -> bool:
    """Check digit and birth date; the district table is not asked, because it ages."""
    try:
        ric.get_birth_date(number)
    except ValidationError:
        return False
    return ric.calc_check_digit(number.upper()) == number[-1].upper()


def _is_card(number: str) -> bool:
    """Luhn over 15 to 19 digits, and not one digit repeated."""
    digits = re.sub(r"[ -]", "", number)
    return 15 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn.is_valid(digits)


def _is_international(number: str) -> bool:
    return 8 <= sum(map(str.isdigit, number)) <= 15


_MAYBE = re.compile(r"[@:=]|[0-9].{0,6}[0-9].{0,6}[0-9]|www|[A-Z0-9_-]{16}", re.IGNORECASE | re.DOTALL)

_NO_DIGIT_BEFORE = r"(?<![0-9A-Za-z.])"
_NO_DIGIT_AFTER = r"(?![0-9A-Za-z]|[.-][0-9])"
_SECRET = r"""
    -----BEGIN[ ][A-Z ]{0,30}PRIVATE[ ]KEY-----.{0,8000}?-----END[ ][A-Z ]{0,30}PRIVATE[ ]KEY-----
  | (?<![0-9A-Za-z])(?:
        eyJ[0-9A-Za-z_-]{8,4000}\.eyJ[0-9A-Za-z_-]{8,4000}\.[0-9A-Za-z_-]{8,1000}
      | (?:sk|pk|rk)[-_](?:[a-z]{2,10}[-_])?[0-9A-Za-z_-]{16,200}
      | gh[pousr]_[0-9A-Za-z]{30,100} | github_pat_[0-9A-Za-z_]{30,120} | glpat-[0-9A-Za-z_-]{16,60}
      | (?:AKIA|ASIA)[0-9A-Z]{16} | LTAI[0-9A-Za-z]{12,30} | AIza[0-9A-Za-z_-]{30,50}
      | xox[abprs]-[0-9A-Za-z-]{10,100} | hf_[0-9A-Za-z]{30,60}
    )(?![0-9A-Za-z])
  | (?:(?<![A-Za-z])(?:api[_-]?key|access[_-]?token|secret[_-]?key|password|passwd)|密码|密钥|口令)
    [ ]?[:=][ ]?(?!\[)[!-~]{6,200}
"""
_EMAIL = (
    r"(?<![0-9A-Za-z._%+-])[0-9A-Za-z][0-9A-Za-z._%+-]{0,63}"
    r"@(?:[0-9A-Za-z-]{1,63}\.){1,6}[A-Za-z]{2,24}(?![0-9A-Za-z-])"
)
_URL = r"(?<![0-9A-Za-z])(?:https?://|www\.)[0-9A-Za-z][0-9A-Za-z.:-]{0,200}(?:[/?#][!#-;=?-Z_a-z~]{0,1000})?"
_PHONE = (
    r"(?:\(?\+?86\)?[ -]?)?1[3-9][0-9][ -]?[0-9]{4}[ -]?[0-9]{4}",
    r"(?:\+?86[ -]?)?(?:\(0[0-9]{2,3}\) ?|0[0-9]{2,3}[ -]?)[2-9][0-9]{2,3}[ -]?[0-9]{4}(?:-[0-9]{1,5})?",
    r"[48]00[ -][0-9]{3,4}[ -]?[0-9]{3,4}|[48]00[0-9]{7}",
    r"(?:\+?1[ .-]?)?(?:\([2-9][0-9]{2}\)[ .-]?|[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4}",
)
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"

_RECOGNISERS = (
    _Recogniser("SECRET", re.compile(_SECRET, re.VERBOSE | re.DOTALL | re.IGNORECASE)),
    _Recogniser("URL", re.compile(_URL, re.IGNORECASE)),
    _Recogniser("EMAIL", re.compile(_EMAIL)),
    _Recogniser(
        "ID",
        re.compile(_NO_DIGIT_BEFORE + r"[1-9][0-9]{5}(?:18|19|20)[0-9]{9}[0-9Xx]" + _NO_DIGIT_AFTER),
        _is_resident_id,
    ),
    _Recogniser(
        "CARD",
        re.compile(_NO_DIGIT_BEFORE + r"(?:[3-6]|2(?=[ -]?[2-7]))(?:[ -]?[0-9]){14,18}" + _NO_DIGIT_AFTER),
        _is_card,
    ),
    _Recogniser("PHONE", re.compile(_NO_DIGIT_BEFORE + f"(?:{'|'.join(_PHONE)})" + _NO_DIGIT_AFTER)),
    _Recogniser(
        "PHONE",
        re.compile(r"(?<![0-9A-Za-z+])\+[1-9][0-9]{0,2}(?:[ .()-]{0,2}[0-9]){6,13}(?![0-9A-Za-z])"),
        _is_international,
    ),
    _Recogniser("IP", re.compile(rf"(?<![0-9A-Za-z.]){_OCTET}(?:\.{_OCTET}){{3}}(?![0-9A-Za-z]|\.[0-9])")),
)
