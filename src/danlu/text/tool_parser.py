"""Function calls in what a model writes, found while it is being written.

A call is announced when its name is certain and its arguments have begun; from there on they are passed on as they
come. Text that only looks like a call stays text: nothing is lost. Ways to write calls are in text/tool_formats, calls
themselves are read in text/tool_bodies. Knows nothing of tokens or HTTP.
"""

from __future__ import annotations

import functools
import re
import secrets
import string
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from danlu.text.tool_bodies import Body, BrokenCall, JsonBody, PythonBody, TaggedBody, held_back
from danlu.text.tool_formats import DIALECTS, ToolFormat, head_patterns

_SPACE = " \t\r\n"


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


class ToolParser:
    """Cuts one answer into what is said and what is called."""

    def __init__(
        self,
        form: ToolFormat = "hermes",
        names: Collection[str] | Mapping[str, Mapping[str, Any]] = (),
        new_id: Callable[[], str] | None = None,
    ) -> None:
        """``names`` are the functions there are, so that no other text is taken for a call; empty for any. With the
        schemas of their arguments, where known: without one, a value between tags is text unless it is JSON."""
        self._dialect = DIALECTS[form]
        self._head_whole, self._head_start = _patterns(form)
        self._names = frozenset(names)
        self._schemas = names if isinstance(names, Mapping) else {}
        self._new_id = new_id or (_short_id if self._dialect.has_short_ids else _long_id)
        self._state: Literal["start", "text", "opened", "call", "between"]
        self._state = "start" if self._dialect.bare else "text"
        self._space = ""  # white space before a call: dropped with it
        self._held = ""  # what may belong to a call, and is text otherwise
        self._opening = ""  # what the held text begins with: not looked at again
        self._head = ""  # what stands between an opening and its call
        self._closed = 0  # closings that were read since the last call
        self._body: Body = JsonBody(self._names)
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
        is_called = self._state == "call" and self._body.is_started
        rest = self._space + self._held
        if is_called:
            more, rest = self._body.leave(is_over=True)
            self._pass_on(more)
        if rest and self._state != "between" and (self._said_last or not rest.isspace()):
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
                    self._state = "text"
                if rest and rest[0] == self._dialect.bare:
                    self._open(self._held, "")
                return rest

    def _open(self, space: str, opening: str) -> None:
        self._space, self._held, self._opening, self._head, self._state = space, opening, opening, "", "opened"

    def _in_text(self, text: str) -> str:
        """White space and what may be an opening are held back."""
        text = self._held + text
        places = [(place, opening) for opening in self._dialect.openings if (place := text.find(opening)) >= 0]
        place, opening = min(places, default=(len(text), ""), key=lambda found: found[0])
        keep = place
        if not opening:
            keep -= max(held_back(text, opening) for opening in self._dialect.openings)
        keep = len(text[:keep].rstrip())
        self._say(text[:keep])
        if not opening:
            self._held = text[keep:]
            return ""
        self._open(text[keep:place], opening)
        return text[place + len(opening) :]

    def _after_opening(self, text: str) -> str:
        """Up to the character that begins a call, or its arguments."""
        character, head = text[0], self._head.strip()
        if character == self._dialect.body and (whole := self._head_whole.fullmatch(head)):
            name = next(filter(None, whole.groups()), None)
            if name is None or self._is_known(name):
                return self._begin(name, text)
        self._held += character
        self._head += character
        return text[1:] if self._head_start.fullmatch(self._head.strip()) else self._give_up(text[1:])

    def _is_known(self, name: str) -> bool:
        return not self._names or name in self._names

    def _begin(self, name: str | None, text: str) -> str:
        if self._dialect.body == "{":
            self._body = JsonBody(self._names, name)
        else:
            assert name is not None, "only JSON names the function itself"
            tags = self._dialect.tags
            self._body = PythonBody(name) if tags is None else TaggedBody(name, tags, self._schemas.get(name))
        self._closed, self._state = 0, "call"
        return text

    def _in_call(self, text: str) -> str:
        body = self._body
        for position, character in enumerate(text):
            try:
                name, arguments = body.push(character)
            except BrokenCall:
                if not body.is_started:
                    return self._give_up(text[position:])
                more, rest = body.leave(is_over=False)
                self._pass_on(more)
                self._state = "between" if rest is None else "text"
                return (rest or "") + text[position:]
            self._held += character
            if name is not None:
                self._pieces.append(CallStart(self.num_calls, self._new_id(), name))
                self.num_calls += 1
                self._said_last = False
            self._pass_on(arguments)
            if body.is_started:
                self._space = self._held = self._opening = ""
            if body.is_complete:
                self._state = "between"
                return text[position + 1 :]
        return ""

    def _pass_on(self, arguments: str) -> None:
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, ArgumentsPiece):
            self._pieces[-1] = ArgumentsPiece(last.index, last.text + arguments)
        elif arguments:
            self._pieces.append(ArgumentsPiece(self.num_calls - 1, arguments))

    def _between(self, text: str) -> str:
        """After a call: another one, what closes it, or text again."""
        character, rest = text[0], text[1:]
        held = self._held + character
        seen = held.lstrip(_SPACE + self._dialect.separators)
        if not seen:
            self._held = held
            return rest
        if not self._closed and self._goes_on(seen[0]):
            self._open(self._held, "")
            return text
        for place, closing in enumerate(self._dialect.closings[self._closed :], self._closed + 1):
            if seen == closing:
                self._held, self._closed = "", place
                self._state = "text" if place == len(self._dialect.closings) else "between"
                return rest
            if closing.startswith(seen):
                self._held = held
                return rest
        self._held, self._state = "", "text"
        return held + rest

    def _goes_on(self, character: str) -> bool:
        """Whether another call of the same opening begins with this character."""
        dialect = self._dialect
        return character == dialect.body == "{" or (dialect.body == "(" and (character == "_" or character.isalpha()))

    def _give_up(self, text: str) -> str:
        """What was held is no call: its opening is text, and the rest is read again."""
        self._say(self._space + self._opening)
        text = self._held.removeprefix(self._opening) + text
        self._space, self._held, self._opening, self._state = "", "", "", "text"
        return text

    def _say(self, text: str) -> None:
        if text:
            self._said_last = True
            last = self._pieces[-1] if self._pieces else None
            if isinstance(last, ContentPiece):
                self._pieces[-1] = ContentPiece(last.text + text)
            else:
                self._pieces.append(ContentPiece(text))


@functools.cache
def _patterns(form: ToolFormat) -> tuple[re.Pattern[str], re.Pattern[str]]:
    return head_patterns(DIALECTS[form])


def _long_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _short_id() -> str:
    """Nine letters and digits: the templates of Mistral take no other."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
