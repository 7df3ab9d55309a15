"""What a model writes, taken apart while it is being written: its thoughts, what it says, the functions it calls.

Pieces come out as soon as they are certain, and none is ever lost. Knows nothing of tokens, HTTP or schemas.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from danlu.text.tool_bodies import held_back
from danlu.text.tool_parser import ArgumentsPiece, CallStart, ContentPiece, ToolParser

THOUGHT_OPEN, THOUGHT_CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class ReasoningPiece:
    """More of what the model thinks before it answers."""

    text: str


AnswerPiece = ReasoningPiece | ContentPiece | CallStart | ArgumentsPiece


class ReasoningSplitter:
    """Takes ``<think>…</think>`` from the front of an answer; white space around the thought is dropped."""

    def __init__(self, *, starts_inside: bool = False) -> None:
        """``starts_inside``: the prompt ends with ``<think>``, so the answer begins within the thought."""
        self._state = "thought" if starts_inside else "before"
        self._held = ""
        self._is_first = True  # nothing but white space was written in this state

    def push(self, text: str) -> list[ReasoningPiece | ContentPiece]:
        """The pieces that this text makes certain."""
        self._held += text
        pieces: list[ReasoningPiece | ContentPiece] = []
        if self._state == "before":
            start = self._held.lstrip()
            if start.startswith(THOUGHT_OPEN):
                self._state, self._held = "thought", start[len(THOUGHT_OPEN) :]
            elif not THOUGHT_OPEN.startswith(start):
                self._state, self._is_first = "content", False
        if self._state == "thought":
            pieces += self._push_thought()
        if self._state == "content":
            said = self._held.lstrip() if self._is_first else self._held
            self._held = ""
            if said:
                self._is_first = False
                pieces.append(ContentPiece(said))
        return pieces

    def _push_thought(self) -> list[ReasoningPiece]:
        if self._is_first:
            self._held = self._held.lstrip()
            if THOUGHT_OPEN.startswith(self._held):  # some models write the opening tag again
                return []
            self._held, self._is_first = self._held.removeprefix(THOUGHT_OPEN).lstrip(), False
        thought, found, rest = self._held.partition(THOUGHT_CLOSE)
        if found:
            self._state, self._held, self._is_first = "content", rest, True
            thought = thought.rstrip()
        else:
            keep = len(thought) - held_back(thought, THOUGHT_CLOSE)
            keep = len(thought[:keep].rstrip())
            thought, self._held = thought[:keep], thought[keep:]
        return [ReasoningPiece(thought)] if thought else []

    def finish(self) -> list[ReasoningPiece | ContentPiece]:
        """What was held back, when the answer is over."""
        text, self._held = self._held, ""
        if not text:
            return []
        return [ReasoningPiece(text) if self._state == "thought" else ContentPiece(text)]


class AnswerParser:
    """Thoughts first, then function calls in what is left; either may be None."""

    def __init__(self, reasoning: ReasoningSplitter | None = None, tools: ToolParser | None = None) -> None:
        self._reasoning = reasoning
        self._tools = tools

    def push(self, text: str) -> list[AnswerPiece]:
        """The pieces that this text makes certain."""
        if self._reasoning is None:
            return self._called([ContentPiece(text)] if text else [])
        return self._called(self._reasoning.push(text))

    def finish(self) -> list[AnswerPiece]:
        """What was held back, when the answer is over."""
        pieces = [] if self._reasoning is None else self._called(self._reasoning.finish())
        return pieces + ([] if self._tools is None else [*self._tools.finish()])

    def _called(self, pieces: list[ReasoningPiece | ContentPiece] | list[ContentPiece]) -> list[AnswerPiece]:
        found: list[AnswerPiece] = []
        for piece in pieces:
            if self._tools is None or isinstance(piece, ReasoningPiece):
                found.append(piece)
            else:
                found += self._tools.push(piece.text)
        return found


def can_think(template: str | None) -> bool:
    """Whether a chat template's model puts its thoughts between ``<think>`` and ``</think>``."""
    return template is not None and re.search(r"</think>|<think>", template) is not None
