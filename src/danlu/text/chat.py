"""Messages become ids and a loss mask: the only place where that happens, for training and serving alike.

The model's own Jinja template runs in a sandbox without access to anything but the messages. What a user typed can
never become a special token: contents are marked before rendering, and special tokens count only outside the marks.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from danlu.core.errors import ModelError, RequestError
from danlu.core.records import Message, Prompt
from danlu.text.tokenizer import TextTokenizer

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"  # noncharacters of Unicode: they never stand in real text
_MAX_TEMPLATE_CHARACTERS = 100_000


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
    def _template(self) -> Any:
        if self.source is None:
            raise RequestError("This model has no chat template.", "Use plain completions, or a chat-tuned model.")
        if len(self.source) > _MAX_TEMPLATE_CHARACTERS:
            raise ModelError(f"The chat template has {len(self.source)} characters.", "It cannot be a real one.")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals = {"raise_exception": _raise_from_template, "namespace": environment.globals["namespace"]}
        try:
            return environment.from_string(self.source)
        except TemplateError as error:
            raise ModelError(f"The chat template is broken: {error}", "Fetch the model again.") from error

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        special = {"bos_token": "", "eos_token": self.tokenizer.end_tokens[0] if self.tokenizer.end_tokens else ""}
        if self.tokenizer.begin_id is not None:
            special["bos_token"] = self.tokenizer.backend.id_to_token(self.tokenizer.begin_id) or ""
        try:
            return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **special)
        except TemplateError as error:
            raise RequestError(
                f"The model's chat template refuses these messages: {error}", "Check roles and their order.",
                param="messages",
            ) from error  # fmt: skip

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> RenderedChat:
        """Ids and answer mask. With ``add_generation_prompt`` the ids end where the assistant begins to write."""
        if not messages:
            raise RequestError("messages is empty.", "Send at least one message.", param="messages")
        marked: list[Message] = [
            {"role": m["role"], "content": _OPEN + _without_marks(m["content"]) + _CLOSE} for m in messages
        ]
        text = self._render(marked, add_generation_prompt)
        plain = [{"role": m["role"], "content": _without_marks(m["content"])} for m in messages]
        if _without_marks(text) != self._render(plain, add_generation_prompt):  # pyright: ignore[reportArgumentType]
            raise ModelError(
                "The chat template changes message texts, so roles in them cannot be told apart safely.",
                "Use a template that inserts each content as it is.",
            )
        return self._encode(text, [m["role"] == "assistant" for m in messages])

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids of whatever a model is asked to continue."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        return self.render(prompt, add_generation_prompt=True).ids

    def _encode(self, text: str, learned: Sequence[bool]) -> RenderedChat:
        """Cut at the template's special tokens, encode what is between as ordinary text."""
        pieces = self._cut(text)
        ids: list[int] = []
        is_answer: list[bool] = []
        message = -1
        inside = False  # between a message's marks
        answer_open = False  # an assistant message just closed: its end token is learnt too
        for piece, special_id in pieces:
            if special_id is not None:
                ids.append(special_id)
                is_answer.append(answer_open)
                answer_open = False
                continue
            clean: list[str] = []
            learnt: list[bool] = []
            for character in piece:
                if character == _OPEN:
                    inside, message = True, message + 1
                    answer_open = False
                elif character == _CLOSE:
                    inside = False
                    answer_open = message < len(learned) and learned[message]
                else:
                    clean.append(character)
                    learnt.append(inside and learned[message])
            encoding = self.tokenizer.encode_with_offsets("".join(clean))
            ids.extend(encoding.ids)
            is_answer.extend(end > start and learnt[end - 1] for start, end in encoding.offsets)
        return RenderedChat(ids, is_answer)

    @functools.cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        names = sorted(self.tokenizer.special_ids, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def _cut(self, text: str) -> list[tuple[str, int | None]]:
        """Pieces of text (with marks) and the special tokens that stand outside the marks."""
        pieces: list[tuple[str, int | None]] = []
        start = position = 0
        while position < len(text):
            if text[position] == _OPEN:
                position = text.index(_CLOSE, position)
            match = self._special_pattern.match(text, position)
            if match:
                if position > start:
                    pieces.append((text[start:position], None))
                pieces.append((match.group(), self.tokenizer.special_ids[match.group()]))
                start = position = match.end()
            else:
                position += 1
        if start < len(text):
            pieces.append((text[start:], None))
        return pieces


def _without_marks(text: str) -> str:
    return text.replace(_OPEN, "").replace(_CLOSE, "")


def _raise_from_template(message: str) -> None:
    raise TemplateError(message)
