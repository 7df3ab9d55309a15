"""normalize: one way of writing for Unicode, width, quotes, white space, HTML remains. Deletes no punctuation.

Letters and digits are folded from full width everywhere; full-width punctuation only in text without Han characters,
where it is a slip, and stays in Chinese, where it is correct. Source of the folding range: Unicode block FF01–FF5E.
"""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass

import pyarrow as pa

from danlu.data.pipeline import Applied, Operator, keep_all, set_text
from danlu.data.words import is_chinese


@dataclass(frozen=True, kw_only=True)
class NormalizeConfig:
    """Which columns to write in one way."""

    columns: tuple[str, ...] = ("text", "title", "class")
    """Text columns to normalise; those the table lacks are passed over."""


def normalize(text: str) -> str:
    """``text`` in one way of writing. Normalising twice changes nothing more, twice escaped HTML aside."""
    for broken, quote in _BROKEN_QUOTES.items():
        text = text.replace(broken, quote)
    text = _TAG.sub(lambda tag: "\n" if tag[1].lower() in ("br", "p", "div", "li") else " ", html.unescape(text))
    text = unicodedata.normalize("NFC", text.translate(_ALPHANUMERIC | _INVISIBLE))
    if not is_chinese(text):
        text = text.translate(_PUNCTUATION)
    text = re.sub(r"[^\S\n]+", " ", text.replace("\r\n", "\n").replace("\r", "\n"))
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" ?\n ?", "\n", text)).strip()


def apply(table: pa.Table, config: NormalizeConfig) -> Applied:
    """Rewrite the configured columns; null stays null."""
    for name in config.columns:
        if name in table.column_names:
            values = table.column(name).to_pylist()
            table = set_text(table, name, [None if value is None else normalize(value) for value in values])
    return keep_all(table)


_TAG = re.compile(r"</?(br|p|div|span|b|i|u|em|strong|li|ul|ol|a|font)(?:\s[^<>]{0,500})?/?>", re.IGNORECASE)
_BROKEN_QUOTES = {
    "â€™": "'",
    "â€˜": "'",
    "â€œ": '"',
    "â€\x9d": '"',
    "â€“": "-",
    "â€”": "-",
    "â€¦": "...",
    "``": '"',
    "\x91": "'",
    "\x92": "'",
    "\x93": '"',
    "\x94": '"',
    "\x96": "-",
    "\x97": "-",
}
_FULL_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_ALPHANUMERIC = {code: plain for code, plain in _FULL_WIDTH.items() if plain.isalnum()}
_PUNCTUATION = {code: plain for code, plain in _FULL_WIDTH.items() if not plain.isalnum()} | str.maketrans(
    "‘’‛“”‟–—", "'''\"\"\"--"
)
_INVISIBLE: dict[int, str | None] = {
    **{code: None for code in range(32) if chr(code) not in "\t\n\r"},
    **dict.fromkeys(range(127, 160)),
    **dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad\ufffd")),
    0x85: "\n",
    0x2028: "\n",
    0x2029: "\n",
}

plugin = Operator(name="normalize", version=1, scope="rows", config_type=NormalizeConfig, apply=apply)
