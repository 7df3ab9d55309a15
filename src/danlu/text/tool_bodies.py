"""The calls themselves, read character by character: JSON, tagged arguments or Python become a name and JSON.

Knows nothing of what stands around a call (text/tool_parser), tokens or HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, Literal, Protocol, cast

from danlu.text.json_scan import BrokenJson, JsonScanner
from danlu.text.json_schema import text_kind
from danlu.text.python_literal import python_as_json
from danlu.text.tool_formats import Tags

_ARGUMENTS = ("arguments", "parameters")
_KNOWN_KEYS = frozenset(("name", "type", "id", *_ARGUMENTS))
_MAX_KEY = 256
_MAX_DEPTH = 100
_CLOSINGS = {"(": ")", "[": "]", "{": "}"}


class BrokenCall(ValueError):
    """The last character cannot stand where it stands; it has not been taken."""


class Body(Protocol):
    """One call that is being read."""

    is_started: bool
    """The call was announced, and its first arguments were passed on."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing more belongs to it."""
        ...

    def push(self, character: str) -> tuple[str | None, str]:
        """The name, when this character makes the call certain, and more of the arguments. Raises BrokenCall."""
        ...

    def leave(self, *, is_over: bool) -> tuple[str, str | None]:
        """The call was broken after it started, or the answer ended: the rest of its arguments, and what was read that
        is no part of it; None for nothing, where what follows may be what ends the call."""
        ...


class JsonBody:
    """An object with the name and the arguments, or the arguments alone of a name that is known."""

    def __init__(self, names: Collection[str], name: str | None = None) -> None:
        self.is_started = False
        self._is_streaming = False  # characters are being passed on
        self._names = names
        self._name = name
        self._is_bare = name is not None
        self._scanner = JsonScanner()
        self._read = ""  # all of it so far
        self._from = 0  # where the key or value of the call that is being read begins
        self._key = ""
        self._arguments = "{}"

    @property
    def is_complete(self) -> bool:
        """Whether the object is closed."""
        return self._scanner.is_complete

    def push(self, character: str) -> tuple[str | None, str]:
        """See Body."""
        was_streaming, was_started = self._is_streaming, self.is_started
        passed = ""
        try:
            events = self._scanner.push(character)
        except BrokenJson:
            raise BrokenCall from None
        for kind, depth in events:
            if kind == "start" and depth == 0:
                if character != "{":
                    raise BrokenCall
                self._from = 1
                self.is_started = self._is_streaming = self._is_bare
            elif depth == 0 and not self._is_bare and not self.is_started:  # the object is complete
                if self._name is None:
                    raise BrokenCall
                passed, self.is_started = self._arguments, True
            elif depth == 1 and not self._is_bare:
                self._follow(kind, character)
        self._read += self._scanner.written
        if was_streaming or self._is_streaming:
            passed = self._scanner.written
        return (self._name if self.is_started and not was_started else None), passed

    def leave(self, *, is_over: bool) -> tuple[str, str | None]:
        """See Body: what was written of the arguments has been passed on."""
        return "", "" if self._is_streaming else None

    def _follow(self, kind: str, character: str) -> None:
        """A key or value of the call itself begins or ends."""
        if kind == "key":
            self._key = json.loads(self._read[self._from :].lstrip(", \t\r\n") + character)
            if self._key not in _KNOWN_KEYS and not self.is_started:
                raise BrokenCall
        elif kind == "start":
            self._from = len(self._read)
            is_arguments = self._key in _ARGUMENTS and self._name is not None and not self.is_started
            if is_arguments and character == "{":
                self.is_started = self._is_streaming = True
        else:
            text = self._read[self._from :] + (character if kind == "end" else "")
            self._from, self._is_streaming = len(self._read) + 1, False
            if self._key == "name":
                self._take_name(json.loads(text))
            elif self._key in _ARGUMENTS:
                self._take_arguments(text)

    def _take_name(self, name: Any) -> None:
        if not isinstance(name, str) or not name or (self._names and name not in self._names):
            raise BrokenCall
        self._name = self._name or name

    def _take_arguments(self, text: str) -> None:
        value = json.loads(text)
        if isinstance(value, str):  # some models write them as a text of JSON
            try:
                text, value = value, json.loads(value)
            except ValueError:
                raise BrokenCall from None
        if value is not None:
            if not isinstance(value, dict):
                raise BrokenCall
            self._arguments = text


class _Arguments:
    """What bodies that are no JSON share: arguments one by one, joined to an object."""

    def __init__(self, name: str) -> None:
        self.is_started = False
        self.is_complete = False
        self._name = name
        self._count = 0
        self._raw = ""  # what was read since the last whole argument

    def _start(self, more: str) -> tuple[str | None, str]:
        """``more`` of the arguments, the name and the brace before the first of it."""
        if self.is_started:
            return None, more
        self.is_started = True
        return self._name, "{" + more

    def _keyed(self, key: str) -> str:
        self._count += 1
        return (", " if self._count > 1 else "") + json.dumps(key, ensure_ascii=False) + ": "

    def _end(self) -> tuple[str | None, str]:
        self.is_complete, self._raw = True, ""
        return self._start("}")


class TaggedBody(_Arguments):
    """Arguments between tags: each value as it is where the function takes text, else as JSON."""

    def __init__(self, name: str, tags: Tags, schema: Mapping[str, Any] | None = None) -> None:
        super().__init__(name)
        self._tags = tags
        self._schema = schema or {}
        self._state: Literal["tag", "key", "open", "value"] = "tag"
        self._part = ""  # what was read in this state
        self._key = self._kind = ""
        self._has_begun = False  # something of a text was passed on, or is certain to be one

    def push(self, character: str) -> tuple[str | None, str]:
        """See Body."""
        part, tags = self._part + character, self._tags
        passed: tuple[str | None, str] = (None, "")
        if self._state in ("tag", "open"):
            wanted = (tags.key[0], tags.end) if self._state == "tag" else (tags.value[0],)
            seen = part.lstrip()
            if not any(tag.startswith(seen) for tag in wanted):
                raise BrokenCall
            if seen and seen == tags.end and self._state == "tag":
                return self._end()
            if seen in wanted and self._state == "tag":
                self._state, part = "key", ""
            elif seen in wanted:
                passed, part = self._begin_value(), ""
        elif self._state == "key":
            if len(part) > _MAX_KEY:
                raise BrokenCall
            if part.endswith(tags.key[1]):
                self._key, self._state, part = part.removesuffix(tags.key[1]).strip(), "open", ""
                passed = self._start("") if tags.value[0] else self._begin_value()
        else:
            return None, self._in_value(part)
        self._part = part
        self._raw = "" if self._state == "value" else self._raw + character
        return passed

    def _begin_value(self) -> tuple[str | None, str]:
        self._kind, self._state, self._has_begun = _kind(self._schema, self._key), "value", False
        return self._start(self._keyed(self._key) + '"' * (self._kind == "text"))

    def _in_value(self, part: str) -> str:
        """What is certain of the value."""
        close = self._tags.value[1]
        if part.endswith(close):
            value = self._unpadded(part.removesuffix(close), is_whole=True)
            self._state, self._part, self._raw = "tag", "", ""
            return f'{_escaped(value)}"' if self._kind == "text" else _as_json(value, self._kind)
        self._part = part
        if self._kind != "text":
            return ""
        padding = "\n" if self._tags.is_padded else ""
        keep = len(part) - max(held_back(part, close), held_back(part, padding + close))
        value, self._part = part[:keep], part[keep:]
        value, self._has_begun = self._unpadded(value, is_whole=False), self._has_begun or bool(value)
        return _escaped(value)

    def _unpadded(self, value: str, *, is_whole: bool) -> str:
        if not self._tags.is_padded:
            return value
        if not self._has_begun:
            value = value.removeprefix("\n")
        return value.removesuffix("\n") if is_whole else value

    def leave(self, *, is_over: bool) -> tuple[str, str | None]:
        """See Body: an argument that breaks off stays so; between two of them the call is taken as complete."""
        if self._state == "value":
            rest = self._part
            return (_escaped(rest) if self._kind == "text" else rest.strip()), None
        return "}", "" if is_over else self._raw


class PythonBody(_Arguments):
    """``(key=value, …)`` with values as Python or JSON writes them."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._state: Literal["open", "key", "value"] = "open"
        self._key = ""
        self._part = ""  # of the key or value
        self._open: list[str] = []
        self._quote = ""
        self._is_escaped = False

    def push(self, character: str) -> tuple[str | None, str]:
        """See Body."""
        passed: tuple[str | None, str] = (None, "")
        if self._state == "open":
            self._state = "key"
        elif self._state == "key":
            passed = self._in_key(character)
        elif character in ",)" and not self._quote and not self._open:
            value = python_as_json(self._part)
            if value is None:
                raise BrokenCall
            passed = None, self._keyed(self._key) + value
            self._state, self._part, self._raw = "key", "", ""
            return (None, passed[1] + self._end()[1]) if character == ")" else passed
        else:
            self._in_value(character)
        self._raw += "" if self.is_complete else character
        return passed

    def _in_key(self, character: str) -> tuple[str | None, str]:
        part = (self._part + character).lstrip()
        if part == ")":
            return self._end()
        if character == "=" and re.fullmatch(r"[^\W\d][\w-]*\s*=", part) and len(part) <= _MAX_KEY:
            self._key, self._part, self._state = part[:-1].strip(), "", "value"
            return self._start("")
        if part and not re.fullmatch(r"[^\W\d][\w-]*\s*", part):
            raise BrokenCall
        self._part = part
        return None, ""

    def _in_value(self, character: str) -> None:
        if self._quote:
            if self._is_escaped:
                self._is_escaped = False
            elif character == "\\":
                self._is_escaped = True
            elif character == self._quote:
                self._quote = ""
        elif character in "'\"":
            self._quote = character
        elif character in _CLOSINGS:
            if len(self._open) == _MAX_DEPTH:
                raise BrokenCall
            self._open.append(_CLOSINGS[character])
        elif character in ")]}" and (not self._open or self._open.pop() != character):
            raise BrokenCall
        self._part += character

    def leave(self, *, is_over: bool) -> tuple[str, str | None]:
        """See Body: an argument that breaks off stays so."""
        if not is_over:
            return "}", self._raw
        return (self._keyed(self._key) + self._part if self._state == "value" else "}"), ""


def _kind(schema: Mapping[str, Any], key: str) -> str:
    """What a function takes under a key: "text", "text or null", or "" for anything else."""
    properties: Any = schema.get("properties")
    found: Any = cast("dict[str, Any]", properties).get(key) if isinstance(properties, dict) else None
    return text_kind(found, schema)


def _as_json(value: str, kind: str) -> str:
    """A value that was written between tags. What is neither JSON nor a literal of Python is a text."""
    found: str | None = value.strip()
    if kind == "text or null":
        return "null" if found in ("null", "None") else json.dumps(value, ensure_ascii=False)
    try:
        json.loads(found, parse_constant=_refuse)
    except (ValueError, RecursionError):
        found = python_as_json(found)
    return json.dumps(value, ensure_ascii=False) if found is None else found


def _refuse(constant: str) -> None:
    raise ValueError(f"JSON has no {constant}")


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def held_back(text: str, marker: str) -> int:
    """Characters at the end of ``text`` that may be the beginning of ``marker``."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if marker.startswith(text[-length:]):
            return length
    return 0
