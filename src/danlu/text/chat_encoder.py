"""A rendered conversation becomes ids: special tokens where the template put them, everything else as ordinary text.

What belongs to messages stands between marks (text/chat put them there), and what the assistant wrote is noted as
learnt. Knows nothing of messages and templates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from danlu.text.template import GENERATION_CLOSE, GENERATION_OPEN
from danlu.text.tokenizer import TextTokenizer

CONTENT_OPEN, ANSWER_OPEN, CONTENT_CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
"""Stand around contents, and those of the assistant: noncharacters of Unicode, never part of real text."""


@dataclass(frozen=True)
class RenderedChat:
    """Ids of a conversation. ``is_answer[i]`` tells whether token i is one the assistant has to learn."""

    ids: list[int]
    is_answer: list[bool]


class ChatEncoder:
    """One rendered text on its way to ids: special tokens where the template put them, the rest as ordinary text.

    Answers are encoded apart from what surrounds them, as they are when the model writes them.
    """

    def __init__(self, tokenizer: TextTokenizer, answer_start: str, *, has_tags: bool) -> None:
        self.tokenizer = tokenizer
        self.answer_start = answer_start
        self.has_tags = has_tags
        self.ids: list[int] = []
        self.is_answer: list[bool] = []
        self._pending = ""  # text that is not encoded yet
        self._begins_text = True  # nothing stands between the pending text and the last special token, or the start
        self._in_tags = False
        self._after_answer = False  # an answer just ended: what ends it is learnt too

    def run(self, text: str, pieces: re.Pattern[str]) -> RenderedChat:
        position = 0
        for match in pieces.finditer(text):
            piece = match.group()
            self._pending, position = self._pending + text[position : match.start()], match.end()
            if piece[0] == CONTENT_OPEN:
                self._pending, self._after_answer = self._pending + piece[1:-1], False
            elif piece[0] == ANSWER_OPEN:
                self._answer(piece[1:-1])
            elif piece in (GENERATION_OPEN, GENERATION_CLOSE):
                self._flush(self._in_tags)
                self._in_tags = piece == GENERATION_OPEN
            else:
                self._special(self.tokenizer.special_ids[piece])
        self._pending += text[position:]
        self._flush(self._in_tags)
        return RenderedChat(self.ids, self.is_answer)

    def _answer(self, text: str) -> None:
        if self.has_tags:
            self._before_answer(learnt=self._in_tags)
        elif self._after_answer and "</think>" in self._pending:  # between a thought and what was said
            self._before_answer(learnt=True)
        else:
            start = self.answer_start
            if start and self._begins_text and self._pending.startswith(start) and self._pending != start:
                rest = self._pending[len(start) :]  # the template begins the answer, for example with <think>
                self._pending = start
                self._flush(False)
                self._pending = rest
                self._before_answer(learnt=True)
            else:
                self._before_answer(learnt=False)
        self._pending += text
        self._flush(self._in_tags if self.has_tags else True)
        self._after_answer = True

    def _before_answer(self, *, learnt: bool) -> None:
        """Encode what stands before an answer; a space at its end joins the answer where words carry their spaces."""
        if self.tokenizer.prefix == "never" or not self._pending.endswith(" "):
            self._flush(learnt)
            return
        self._pending = self._pending[:-1]
        self._flush(learnt)
        self._pending = " "

    def _special(self, index: int) -> None:
        learnt = self._in_tags if self.has_tags else self._after_answer and not self._pending.strip()
        self._flush(learnt)
        self.ids.append(index)
        self.is_answer.append(learnt)
        self._begins_text, self._after_answer = True, False

    def _flush(self, learnt: bool) -> None:
        if not self._pending:
            return
        prefix = self.tokenizer.prefix
        puts_space = self._begins_text and (prefix == "always" or not self.ids)
        new = (self.tokenizer.encode if puts_space else self.tokenizer.encode_rest)(self._pending)
        self.ids += new
        self.is_answer += [learnt] * len(new)
        self._pending, self._begins_text = "", False
