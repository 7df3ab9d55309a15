"""Function calls in what a model writes, found while it is being written.

A call is announced when its name is certain and its arguments have begun; from there on they are passed on as they
come. Text that only looks like a call stays text: nothing is lost. Knows nothing of tokens, schemas or HTTP.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

from danlu.text.json_scan import BrokenJson, JsonScanner

ToolFormat = Literal["hermes", "llama3", "mistral", "mistral_args"]
"""How a model writes calls: ``<tool_call>{"name", "arguments"}</tool_call>``; bare ``{"name", "parameters"}``;
``[TOOL_CALLS][{"name", "arguments"}, …]``; ``[TOOL_CALLS]name[ARGS]{…}``. Mistral's two are read alike."""


@dataclass(frozen=True)
class ContentPiece:
    """More of what the model says."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """The model calls a function; ``index`` counts the calls of one answer."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ArgumentsPiece:
    """More of a call's arguments: all pieces of one index join to JSON."""

    index: int
    text: str


ToolPiece = ContentPiece | CallStart | ArgumentsPiece


@dataclass(frozen=True)
class _Dialect:
    opening: str
    """What stands before a call."""
    closing: str
    """What stands after the last call of one opening; "" for nothing."""
    separators: str
    """Characters between calls."""
    is_bare: bool = False
    """Whether an answer may begin with a call, without the opening."""
    is_listed: bool = False
    """Whether the calls are a list, or a name followed by arguments."""


_DIALECTS: dict[ToolFormat, _Dialect] = {
    "hermes": _Dialect("<tool_call>", "</tool_call>", ""),
    "llama3": _Dialect("<|python_tag|>", "", ";", is_bare=True),
    "mistral": _Dialect("[TOOL_CALLS]", "]", ",", is_listed=True),
    "mistral_args": _Dialect("[TOOL_CALLS]", "]", ",", is_listed=True),
}
MARKERS = ("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
"""Texts of tool calls that are special tokens of some models, and that a ToolParser has to see."""
_ARGUMENTS = ("arguments", "parameters")
_SPACE = " \t\r\n"
_KNOWN_KEYS = frozenset(("name", "type", "id", *_ARGUMENTS))
_HEAD = re.compile(r"([\w.-]{1,128})(?:\[CALL_ID\][\w-]*)?(?:\[ARGS\])?")
_HEAD_START = re.compile(r"[\w.-]{1,128}(?:\[(?:[A-Z_]*|CALL_ID\][\w-]*(?:\[[A-Z]*\]?)?|ARGS\]))?")


class _Body:
    """One call: an object with its name and arguments, or the arguments alone of a name that is known."""

    def __init__(self, names: Collection[str], name: str | None = None) -> None:
        self.is_started = False
        """The call was announced, and its first arguments were passed on."""
        self.is_streaming = False
        """Characters are being passed on."""
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
        return self._scanner.is_complete

    def push(self, character: str) -> tuple[str | None, str]:
        """The name, when this character makes the call certain, and more of the arguments. Raises BrokenJson."""
        was_streaming, was_started = self.is_streaming, self.is_started
        passed = ""
        for kind, depth in self._scanner.push(character):
            if kind == "start" and depth == 0:
                if character != "{":
                    raise BrokenJson
                self._from = 1
                self.is_started = self.is_streaming = self._is_bare
            elif depth == 0 and not self._is_bare and not self.is_started:  # the object is complete
                if self._name is None:
                    raise BrokenJson
                passed, self.is_started = self._arguments, True
            elif depth == 1 and not self._is_bare:
                self._follow(kind, character)
        self._read += self._scanner.written
        if was_streaming or self.is_streaming:
            passed = self._scanner.written
        return (self._name if self.is_started and not was_started else None), passed

    def _follow(self, kind: str, character: str) -> None:
        """A key or value of the call itself begins or ends."""
        if kind == "key":
            self._key = json.loads(self._read[self._from :].lstrip(", \t\r\n") + character)
            if self._key not in _KNOWN_KEYS and not self.is_started:
                raise BrokenJson
        elif kind == "start":
            self._from = len(self._read)
            is_arguments = self._key in _ARGUMENTS and self._name is not None and not self.is_started
            if is_arguments and character == "{":
                self.is_started = self.is_streaming = True
        else:
            text = self._read[self._from :] + (character if kind == "end" else "")
            self._from, self.is_streaming = len(self._read) + 1, False
            if self._key == "name":
                self._take_name(json.loads(text))
            elif self._key in _ARGUMENTS:
                self._take_arguments(text)

    def _take_name(self, name: Any) -> None:
        if not isinstance(name, str) or not name or (self._names and name not in self._names):
            raise BrokenJson
        self._name = self._name or name

    def _take_arguments(self, text: str) -> None:
        value = json.loads(text)
        if isinstance(value, str):  # some models write them as a text of JSON
            try:
                text, value = value, json.loads(value)
            except ValueError:
                raise BrokenJson from None
        if value is not None:
            if not isinstance(value, dict):
                raise BrokenJson
            self._arguments = text


class ToolParser:
    """Cuts one answer into what is said and what is called."""

    def __init__(
        self, form: ToolFormat = "hermes", names: Collection[str] = (), new_id: Callable[[], str] | None = None
    ) -> None:
        """``names`` are the functions there are, so that no other text is taken for a call; empty for any."""
        self._dialect = _DIALECTS[form]
        self._names = frozenset(names)
        self._new_id = new_id or (_short_id if self._dialect.is_listed else _long_id)
        self._state: Literal["start", "text", "opened", "call", "between"]
        self._state = "start" if self._dialect.is_bare else "text"
        self._space = ""  # white space before a call: dropped with it
        self._held = ""  # what may belong to a call, and is text otherwise
        self._head = ""  # what stands between an opening and its call
        self._body = _Body(self._names)
        self._pieces: list[ToolPiece] = []
        self._said_last = True  # nothing was called since something was said
        self.num_calls = 0
        """Calls announced so far."""

    def push(self, text: str) -> list[ToolPiece]:
        """The pieces that this text makes certain."""
        while text:
            text = self._step(text)
        pieces, self._pieces = self._pieces, []
        return pieces

    def finish(self) -> list[ToolPiece]:
        """What was held back, when the answer is over."""
        rest = self._space + self._held
        is_cut_off = self._state == "between" or (self._state == "call" and self._body.is_started)
        if rest and not is_cut_off and (self._said_last or not rest.isspace()):
            self._say(rest)
        self._space = self._held = ""
        pieces, self._pieces = self._pieces, []
        return pieces

    def _step(self, text: str) -> str:
        """Take the beginning of ``text``; returns what has to be read in the state that follows."""
        match self._state:
            case "text":
                return self._in_text(text)
            case "opened":
                return self._after_opening(text)
            case "call":
                return self._in_call(text)
            case "between":
                return self._between(text)
            case "start":
                rest = text.lstrip()
                self._held += text[: len(text) - len(rest)]
                if rest:
                    self._state = "opened" if rest[0] == "{" else "text"
                if self._state == "opened":
                    self._space, self._held, self._head = self._held, "", ""
                return rest

    def _in_text(self, text: str) -> str:
        """White space and what may be an opening are held back."""
        text, opening = self._held + text, self._dialect.opening
        before, found, after = text.partition(opening)
        keep = len(before) if found else len(text) - held_back(text, opening)
        keep = len(text[:keep].rstrip())
        self._say(text[:keep])
        if not found:
            self._held = text[keep:]
            return ""
        self._space, self._held, self._head, self._state = before[keep:], opening, "", "opened"
        return after

    def _after_opening(self, text: str) -> str:
        """Up to the brace that begins a call, or its arguments."""
        character = text[0]
        head = self._head.strip()
        if character == "{" and head in (("", "[") if self._dialect.is_listed else ("",)):
            return self._begin(None, text)
        if (
            character == "{"
            and self._dialect.is_listed
            and (named := _HEAD.fullmatch(head))
            and self._is_known(named[1])
        ):
            return self._begin(named[1], text)
        self._held += character
        self._head += character
        head = self._head.strip()
        if not head or (self._dialect.is_listed and (head == "[" or _HEAD_START.fullmatch(head))):
            return text[1:]
        return self._give_up(text[1:])

    def _is_known(self, name: str) -> bool:
        return not self._names or name in self._names

    def _begin(self, name: str | None, text: str) -> str:
        self._body, self._state = _Body(self._names, name), "call"
        return text

    def _in_call(self, text: str) -> str:
        body = self._body
        for position, character in enumerate(text):
            try:
                name, arguments = body.push(character)
            except BrokenJson:
                if not body.is_started:
                    return self._give_up(text[position:])
                self._state = "text" if body.is_streaming else "between"
                return text[position:]
            self._held += character
            if name is not None:
                self._pieces.append(CallStart(self.num_calls, self._new_id(), name))
                self.num_calls += 1
                self._said_last = False
            if arguments:
                self._pass_on(arguments)
            if body.is_started:
                self._space = self._held = ""
            if body.is_complete:
                self._state = "between"
                return text[position + 1 :]
        return ""

    def _pass_on(self, arguments: str) -> None:
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, ArgumentsPiece):
            self._pieces[-1] = ArgumentsPiece(last.index, last.text + arguments)
        else:
            self._pieces.append(ArgumentsPiece(self.num_calls - 1, arguments))

    def _between(self, text: str) -> str:
        """After a call: another one, the closing, or text again."""
        character, rest = text[0], text[1:]
        seen = (self._held + character).lstrip(_SPACE + self._dialect.separators)
        if seen == "{":
            self._space, self._held = self._held, ""
            return self._begin(None, text)
        closing = self._dialect.closing
        if seen and not closing.startswith(seen):
            text, self._held, self._state = self._held + text, "", "text"
            return text
        self._held += character
        if seen and seen == closing:
            self._held, self._state = "", "text"
        return rest

    def _give_up(self, text: str) -> str:
        """What was held is no call: its opening is text, and the rest is read again."""
        opening = self._dialect.opening if self._held.startswith(self._dialect.opening) else ""
        self._say(self._space + opening)
        text = self._held.removeprefix(opening) + text
        self._space, self._held, self._state = "", "", "text"
        return text

    def _say(self, text: str) -> None:
        if text:
            self._said_last = True
            last = self._pieces[-1] if self._pieces else None
            if isinstance(last, ContentPiece):
                self._pieces[-1] = ContentPiece(last.text + text)
            else:
                self._pieces.append(ContentPiece(text))


def held_back(text: str, marker: str) -> int:
    """Characters at the end of ``text`` that may be the beginning of ``marker``."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if marker.startswith(text[-length:]):
            return length
    return 0


def _long_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _short_id() -> str:
    """Nine letters and digits: the templates of Mistral take no other."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
