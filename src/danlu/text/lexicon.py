"""Finds key product attributes in English and Chinese text: material, size, fit, colour, occasion.

The words stand in ``lexicon.yaml``. One regular expression: whole words, the longest form first whatever its key
("black tie" is no colour), with a simple guard against negation ("not cotton", "不是纯棉"). The same function labels
training rows and measures coverage and invention in answers, so whatever it misses, it misses on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib import resources
from typing import cast

from danlu.core.config import parse_yaml

KEYS = ("material", "size", "fit", "colour", "occasion")
"""The attribute keys, in the order prompts give them."""


def find(text: str) -> dict[str, list[str]]:
    """Canonical values by key, in order of first mention; keys without a mention are left out."""
    lowered = text.lower().replace("’", "'")
    pattern, canonical = _compiled()
    found: dict[str, list[str]] = {key: [] for key in KEYS}
    for match in pattern.finditer(lowered):
        key, value = canonical[_form_key(match.group())]
        start = match.start()
        if value not in found[key] and not _NEGATED.search(lowered, max(0, start - 40), start):
            found[key].append(value)
    return {key: values for key, values in found.items() if values}


def mentions(text: str, key: str, value: str) -> bool:
    """Whether ``text`` states this canonical value."""
    return value in find(text).get(key, ())


def values(key: str) -> tuple[str, ...]:
    """All canonical values of a key."""
    return tuple(dict.fromkeys(value for form_key, value in _compiled()[1].values() if form_key == key))


_FILLER = "a|an|the|bit|little|tad|touch|slightly|very|quite|pretty|so|really|super|just|definitely|somewhat|rather"
_FILLERS = frozenset(_FILLER.split("|"))
_NEGATED = re.compile(
    r"(?:(?<![a-z])(?:not|no|never|without|isn't|aren't|wasn't|don't|doesn't|didn't|won't|neither|nor|non|rather than"
    r"|instead of|less)(?:[ -]+(?:a|an|the|at all|too|overly|super|very|really|so|that|made of|made|of|being|be|look"
    r"|feel|any|necessarily|exactly))*[ -]*|(?:不是|并非|并不|没有|不|非|无)(?:很|太|是|特别)?)\Z"
)


@lru_cache(maxsize=4096)
def _form_key(form: str) -> str:
    """A surface form without fillers, separators made equal: the key of the lookup table."""
    return " ".join(word for word in re.split(r"[\s-]+", form) if word not in _FILLERS)


@cache
def _compiled() -> tuple[re.Pattern[str], dict[str, tuple[str, str]]]:
    """One pattern for all forms, and each form's key and canonical value."""
    text = resources.files("danlu.text").joinpath("lexicon.yaml").read_text(encoding="utf-8")
    lexicon = cast("dict[str, dict[str, list[str]]]", parse_yaml(text, "lexicon.yaml"))
    assert tuple(lexicon) == KEYS
    canonical: dict[str, tuple[str, str]] = {}
    han: set[str] = set()
    latin: set[str] = set()
    for key, forms_of in lexicon.items():
        for value, forms in forms_of.items():
            for form in forms[1:] if forms[:1] == ["!"] else [value, *forms]:
                meaning = canonical.setdefault(_form_key(form.replace("~", " ").strip().lower()), (key, value))
                assert meaning == (key, value), f"'{form}' stands for {meaning} and {(key, value)}"
                (latin if form.isascii() else han).add(form.lower())
    pattern = rf"(?<![a-z0-9]){_trie(map(_units, latin))}(?![a-z0-9])|{_trie(map(tuple, han))}"
    return re.compile(pattern), canonical


def _units(form: str) -> tuple[str, ...]:
    """A form as pieces of a pattern: characters, separators (space or hyphen match either), and ``~`` for fillers."""
    parts = re.findall(r" ?~ ?|[ -]|.", form)
    return tuple(
        rf"[\s-]+(?:(?:{_FILLER})\s+)*" if "~" in part else r"[\s-]+" if part in " -" else re.escape(part)
        for part in parts
    )


def _trie(forms: Iterable[tuple[str, ...]]) -> str:
    """One pattern for many forms sharing their beginnings; at each step the longer form is tried first."""
    branches: dict[str, list[tuple[str, ...]]] = {}
    is_end = False
    for form in sorted(forms):
        if form:
            branches.setdefault(form[0], []).append(form[1:])
        else:
            is_end = True
    if not branches:
        return ""
    body = "|".join(unit + _trie(rest) for unit, rest in branches.items())
    return f"(?:{body})?" if is_end else f"(?:{body})"
