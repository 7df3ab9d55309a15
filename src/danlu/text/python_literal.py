"""Values as Python writes them, turned into JSON: what models write that call functions as Python does.

Nothing is evaluated. Knows nothing of calls.
"""

from __future__ import annotations

import json
import re

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>[ru]?(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'))"""
    r"""|(?P<number>[-+]?(?:[0-9][0-9_]*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)"""
    r"""|(?P<word>True|False|None|true|false|null)\b|(?P<mark>[][{}(),:]))\s*""",
    re.DOTALL | re.ASCII,
)
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORDS = {"True": "true", "False": "false", "None": "null"}
_MARKS = {"(": "[", ")": "]", ",": ", ", ":": ": "}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{1,3}|.)", re.DOTALL)
_ESCAPES = {
    "n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "\\": "\\", "'": "'", '"': '"',
    "\n": "",
}  # fmt: skip


def python_as_json(text: str) -> str | None:
    """The JSON of a Python literal; None when it is none, or one that JSON has nothing for. Tuples become lists."""
    found = list[str]()
    place = 0
    while place < len(text):
        token = _TOKEN.match(text, place)
        if token is None:
            return None
        place = token.end()
        if token["text"] is not None:
            found.append(json.dumps(_unquoted(token["text"]), ensure_ascii=False))
        elif token["number"] is not None:
            number = _number(token["number"])
            if number is None:
                return None
            found.append(number)
        elif token["word"] is not None:
            found.append(_WORDS.get(token["word"], token["word"]))
        else:
            mark = _MARKS.get(token["mark"], token["mark"])
            if mark in "]}" and found and found[-1] == ", ":  # Python allows a comma at the end
                found.pop()
            found.append(mark)
    joined = "".join(found)
    try:
        json.loads(joined)
    except (ValueError, RecursionError):
        return None
    return joined


def _number(text: str) -> str | None:
    if _JSON_NUMBER.fullmatch(text):
        return text
    try:
        if re.search(r"[.eE]", text):
            value = float(text)
            return repr(value) if abs(value) < float("inf") else None
        return str(int(text))
    except ValueError:  # more digits than Python reads
        return None


def _unquoted(text: str) -> str:
    inside = text[text.index(text[-1]) + 1 : -1]
    if text[0] == "r":
        return inside
    return _ESCAPE.sub(lambda found: _character(found[1]), inside).encode("utf-16", "surrogatepass").decode(
        "utf-16", "replace"
    )  # fmt: skip


def _character(escape: str) -> str:
    if escape[0] in "xuU" and len(escape) > 1:
        code = int(escape[1:], 16)
        return chr(code) if code < 0x110000 else "\ufffd"
    if escape.isdecimal():
        return chr(int(escape, 8)) if set(escape) <= set("01234567") else f"\\{escape}"
    return _ESCAPES.get(escape, f"\\{escape}")
