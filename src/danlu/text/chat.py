"""Messages become ids and a loss mask: the only place where that happens, for training and serving alike.

The model's own template runs bounded and without reach (text/template). What a user typed can never become a special
token: contents are marked before rendering, and special tokens count only outside the marks. What the assistant wrote
is learnt: where the template has generation tags, exactly what stands between them; elsewhere the assistant's contents,
whatever the template adds between the generation prompt and them, and the special token that ends them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, get_args

from danlu.core.errors import DanluError, DataError, ModelError, RequestError
from danlu.core.records import Message, Prompt, Role
from danlu.text.template import GENERATION_CLOSE, GENERATION_OPEN, Template
from danlu.text.tokenizer import TextTokenizer

_OPEN, _OPEN_ANSWER, _CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"  # noncharacters of Unicode: never part of real text
_MARKS = re.compile(f"[{_OPEN}{_OPEN_ANSWER}{_CLOSE}{GENERATION_OPEN}{GENERATION_CLOSE}]")
_CONTENT = f"[{_OPEN}{_OPEN_ANSWER}][^{_OPEN}{_OPEN_ANSWER}{_CLOSE}]*{_CLOSE}"
_CONTENT_MARKS = re.compile(f"[{_OPEN}{_OPEN_ANSWER}{_CLOSE}]")
_THOUGHT = re.compile(r"(\s*<think>\s*)(.*?)(\s*</think>\s*)", re.DOTALL)
_ROLES = get_args(Role)


def conversation(row: Mapping[str, Any]) -> list[Message]:
    """The messages of a row of data; DataError when it has none that can be used."""
    messages: Any = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise DataError(
            f"A row has messages {messages!r:.80}.", 'Give a list such as [{"role": "user", "content": "…"}, …].'
        )
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise DataError(f"A row has the message {message!r:.80}.", "Each needs role and content, both texts.")
        if message["role"] not in _ROLES:
            raise DataError(f"A row has a message with the role {message['role']!r}.", f"Known: {', '.join(_ROLES)}.")
    return messages


@dataclass(frozen=True)
class RenderedChat:
    """Ids of a conversation. ``is_answer[i]`` tells whether token i is one the assistant has to learn."""

    ids: list[int]
    is_answer: list[bool]


class ChatFormat:
    """A tokenizer and a template: how one model wants its conversations."""

    def __init__(self, tokenizer: TextTokenizer, template: str | None) -> None:
        self.tokenizer = tokenizer
        self.source = template

    @functools.cached_property
    def _template(self) -> Template:
        if self.source is None:
            raise RequestError("This model has no chat template.", "Use plain completions, or a chat-tuned model.")
        return Template(self.source)

    def _render(
        self,
        messages: Sequence[Message],
        texts: Sequence[str],
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None,
    ) -> str:
        """The template's text with ``texts`` as the messages' contents."""
        tokenizer = self.tokenizer
        special = {"bos_token": "", "eos_token": "", **tokenizer.roles}
        turns = [{**m, "content": text} for m, text in zip(messages, texts, strict=True)]
        given = {"messages": turns, "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
        try:
            return self._template.render({**(variables or {}), **special, **given})
        except DanluError:
            raise
        except Exception as error:  # a template can fail in every way that code can
            raise RequestError(
                f"The model's chat template refuses these messages: {error}", "Check roles and their order.",
                param="messages",
            ) from error  # fmt: skip

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        variables: Mapping[str, str | int | float | bool] | None = None,
    ) -> RenderedChat:
        """Ids and answer mask. With ``add_generation_prompt`` the ids end where the assistant begins to write.

        ``variables`` are the template's own switches, such as Qwen3's ``enable_thinking``; they are the operator's,
        never a client's.
        """
        if not messages:
            raise RequestError("messages is empty.", "Send at least one message.", param="messages")
        for message in messages:
            if message["role"] not in _ROLES:  # it stands in the text unmarked
                raise RequestError(
                    f"A message has the role {message['role']!r}.", f"Known: {', '.join(_ROLES)}.", param="messages"
                )
        contents = [_MARKS.sub("", message["content"]) for message in messages]
        plain = _MARKS.sub("", self._render(messages, contents, add_generation_prompt, variables))
        for marked in _markings(messages, contents):
            text = self._render(messages, marked, add_generation_prompt, variables)
            if _MARKS.sub("", text) == plain and not _CONTENT_MARKS.search(re.sub(_CONTENT, "", text)):
                return self._encode(text)
        raise ModelError(
            "The chat template changes message texts, so roles in them cannot be told apart safely.",
            "Use a template that inserts each content as it is.",
        )

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids of whatever a model is asked to continue."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        return self.render(prompt, add_generation_prompt=True).ids

    @functools.cached_property
    def _answer_start(self) -> str:
        """What stands between the generation prompt's last special token and an answer: "assistant\\n", for example."""
        ask: list[Message] = [{"role": "user", "content": "x"}]
        try:
            short, long = (self._render(ask, ["x"], prompt, None) for prompt in (False, True))
        except RequestError:
            return ""
        added = long.removeprefix(short) if long.startswith(short) else ""
        specials = list(self._pieces.finditer(added))
        return added[specials[-1].end() :] if specials else ""

    def _encode(self, text: str) -> RenderedChat:
        return _Encoder(self.tokenizer, self._answer_start, has_tags=GENERATION_OPEN in text).run(text, self._pieces)

    @functools.cached_property
    def _pieces(self) -> re.Pattern[str]:
        """A marked content, an end of a generation block, or a special token outside a content."""
        names = sorted(self.tokenizer.special_ids, key=len, reverse=True)
        return re.compile("|".join([_CONTENT, GENERATION_OPEN, GENERATION_CLOSE, *map(re.escape, names)]))


class _Encoder:
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
            if piece[0] == _OPEN:
                self._pending, self._after_answer = self._pending + piece[1:-1], False
            elif piece[0] == _OPEN_ANSWER:
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


def _markings(messages: Sequence[Message], contents: Sequence[str]) -> Iterator[list[str]]:
    """Contents with marks, in every way that templates need: around all of it; inside the space that many templates
    strip, for everybody else's texts or the assistant's; and with the assistant's thoughts apart from what it said."""
    seen: set[tuple[str, ...]] = set()
    for splits_thoughts, (strips_answers, strips_others) in product((False, True), product((False, True), repeat=2)):
        marked: list[str] = []
        for message, text in zip(messages, contents, strict=True):
            is_answer = message["role"] == "assistant"
            mark = _OPEN_ANSWER if is_answer else _OPEN
            thought = _THOUGHT.match(text) if is_answer and splits_thoughts else None
            pieces = []
            if thought:
                before, inside, after = thought.groups()
                pieces, text = [before, f"{mark}{inside}{_CLOSE}" if inside else "", after], text[thought.end() :]
            strips = strips_answers if is_answer else strips_others
            marked.append("".join(pieces) + (_mark_inside(mark, text) if strips else f"{mark}{text}{_CLOSE}"))
        if tuple(marked) not in seen:
            seen.add(tuple(marked))
            yield marked


def _mark_inside(mark: str, text: str) -> str:
    core = text.strip()
    start = text.index(core)
    return f"{text[:start]}{mark}{core}{_CLOSE}{text[start + len(core) :]}"
