"""Follows JSON character by character, as a model writes it: what is complete, what is broken, nothing kept.

Knows nothing of tools or schemas.
"""

from __future__ import annotations

import json
import re
from typing import Literal

Event = tuple[Literal["key", "start", "end", "ended"], int]
"""What a character does, and the number of lists and objects around it: it completes a key, begins a value, completes
a value, or shows that the value before it was complete (a number, for example)."""
_LITERAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")
_LITERAL_CHARACTERS = frozenset("+-.0123456789abcdefghijklmnopqrstuvwxyzE")
_ESCAPES = frozenset('"\\/bfnrtu')
_HEX = frozenset("0123456789abcdefABCDEF")
_SPACE = frozenset(" \t\r\n")
_CLOSINGS = {"{": "}", "[": "]"}
_MAX_DEPTH = 200


class BrokenJson(ValueError):
    """The last character cannot stand where it stands; it has not been taken."""


class JsonScanner:
    """One value, of which the characters arrive in turn."""

    def __init__(self) -> None:
        self.written = ""
        """What stands for the last character in correct JSON: itself, or the escape of a bare control character."""
        self.is_complete = False
        self._open: list[str] = []
        self._expects: Literal["value", "value or ]", "key", "key or }", ":", "next"] = "value"
        self._in: Literal["", "key", "string"] = ""
        self._escape = -1  # -1 outside an escape, 0 after the backslash, else hexadecimal digits to come
        self._literal = ""

    @property
    def depth(self) -> int:
        """Objects and lists that are open."""
        return len(self._open)

    def push(self, character: str) -> tuple[Event, ...]:
        """What the character begins and completes, in order. Raises BrokenJson."""
        if self.is_complete:
            raise BrokenJson
        self.written = character
        if self._in:
            return self._push_string(character)
        if self._literal:
            if character in _LITERAL_CHARACTERS and len(self._literal) < 400:
                self._literal += character
                return ()
            if not _LITERAL.fullmatch(self._literal):
                raise BrokenJson
            self._literal = ""
            self._end()
            ended: Event = ("ended", self.depth)
            return (ended,) if self.is_complete else (ended, *self._push_structure(character))
        return self._push_structure(character)

    def _push_string(self, character: str) -> tuple[Event, ...]:
        if self._escape > 0:
            if character not in _HEX:
                raise BrokenJson
            self._escape = self._escape - 1 or -1
        elif self._escape == 0:
            if character not in _ESCAPES:
                raise BrokenJson
            self._escape = 4 if character == "u" else -1
        elif character == "\\":
            self._escape = 0
        elif character == '"':
            if self._in == "key":
                self._in, self._expects = "", ":"
                return (("key", self.depth),)
            self._in = ""
            return self._end()
        elif character < " ":
            self.written = json.dumps(character)[1:-1]
        return ()

    def _push_structure(self, character: str) -> tuple[Event, ...]:
        if character in _SPACE:
            return ()
        expects = self._expects
        if expects == ":" and character == ":":
            self._expects = "value"
        elif expects in ("key", "key or }") and character == '"':
            self._in = "key"
        elif expects == "next" and character == ",":
            self._expects = "key" if self._open[-1] == "{" else "value"
        elif self._open and character == _CLOSINGS[self._open[-1]] and self._can_close():
            self._open.pop()
            return self._end()
        elif expects in ("value", "value or ]"):
            return (("start", self._begin(character)),)
        else:
            raise BrokenJson
        return ()

    def _can_close(self) -> bool:
        return self._expects in ("key or }", "value or ]", "next")

    def _begin(self, character: str) -> int:
        depth = self.depth
        if character in "{[":
            if self.depth == _MAX_DEPTH:
                raise BrokenJson
            self._open.append(character)
            self._expects = "key or }" if character == "{" else "value or ]"
        elif character == '"':
            self._in = "string"
        elif character in _LITERAL_CHARACTERS:
            self._literal = character
        else:
            raise BrokenJson
        return depth

    def _end(self) -> tuple[Event, ...]:
        self._expects = "next"
        self.is_complete = not self._open
        return (("end", self.depth),)
