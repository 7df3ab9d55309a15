"""Messages become ids and a loss mask: the only place where that happens, for training and serving alike.

The model's own Jinja template runs in a sandbox without access to anything but the messages. What a user typed can
never become a special token: contents are marked before rendering, and special tokens count only outside the marks.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from danlu.core.errors import DanluError, DataError, ModelError, RequestError
from danlu.core.records import Message, Prompt, Role
from danlu.text.tokenizer import TextTokenizer

_OPEN, _OPEN_ANSWER, _CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"  # noncharacters of Unicode: never part of real text
_MARKS = re.compile(f"[{_OPEN}{_OPEN_ANSWER}{_CLOSE}]")
_CONTENT = f"[{_OPEN}{_OPEN_ANSWER}][^{_OPEN}{_OPEN_ANSWER}{_CLOSE}]*{_CLOSE}"
_MAX_TEMPLATE_CHARACTERS = 100_000
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
    def _template(self) -> Any:
        if self.source is None:
            raise RequestError("This model has no chat template.", "Use plain completions, or a chat-tuned model.")
        if len(self.source) > _MAX_TEMPLATE_CHARACTERS:
            raise ModelError(f"The chat template has {len(self.source)} characters.", "It cannot be a real one.")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals = {"raise_exception": _raise_from_template, "namespace": environment.globals["namespace"]}
        try:
            return environment.from_string(self.source)
        except TemplateError as error:
            raise ModelError(f"The chat template is broken: {error}", "Fetch the model again.") from error

    def _render(self, messages: Sequence[Message], texts: Sequence[str], add_generation_prompt: bool) -> str:
        """The template's text with ``texts`` as the messages' contents."""
        tokenizer = self.tokenizer
        special = {"bos_token": "", "eos_token": tokenizer.end_tokens[0] if tokenizer.end_tokens else ""}
        if tokenizer.begin_id is not None:
            special["bos_token"] = tokenizer.backend.id_to_token(tokenizer.begin_id) or ""
        turns = [{"role": m["role"], "content": text} for m, text in zip(messages, texts, strict=True)]
        nothing = {"tools": None, "documents": None}
        try:
            return self._template.render(
                messages=turns, add_generation_prompt=add_generation_prompt, **special, **nothing
            )
        except DanluError:
            raise
        except Exception as error:  # a template can fail in every way that code can
            raise RequestError(
                f"The model's chat template refuses these messages: {error}", "Check roles and their order.",
                param="messages",
            ) from error  # fmt: skip

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> RenderedChat:
        """Ids and answer mask. With ``add_generation_prompt`` the ids end where the assistant begins to write."""
        if not messages:
            raise RequestError("messages is empty.", "Send at least one message.", param="messages")
        for message in messages:
            if message["role"] not in _ROLES:  # it stands in the text unmarked
                raise RequestError(
                    f"A message has the role {message['role']!r}.", f"Known: {', '.join(_ROLES)}.", param="messages"
                )
        contents = [_MARKS.sub("", message["content"]) for message in messages]
        opens = [_OPEN_ANSWER if message["role"] == "assistant" else _OPEN for message in messages]
        plain = self._render(messages, contents, add_generation_prompt)
        for texts in (contents, [text.strip() for text in contents]):  # many templates strip contents
            marked = [mark + text + _CLOSE for mark, text in zip(opens, texts, strict=True)]
            text = self._render(messages, marked, add_generation_prompt)
            if _MARKS.sub("", text) == plain and not _MARKS.search(re.sub(_CONTENT, "", text)):
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

    def _encode(self, text: str) -> RenderedChat:
        """Special tokens where the template put them; the rest as ordinary text.

        Answers are encoded apart from what surrounds them, as they are when the model writes them.
        """
        ids: list[int] = []
        is_answer: list[bool] = []
        answer_open = False  # an answer just ended: the special token after it is learnt too

        def add(new: list[int], learnt: bool) -> None:
            ids.extend(new)
            is_answer.extend([learnt] * len(new))

        pending, position = "", 0  # text that is not encoded yet
        for match in self._pieces.finditer(text):
            piece = match.group()
            pending, position = pending + text[position : match.start()], match.end()
            if piece[0] == _OPEN:
                pending, answer_open = pending + piece[1:-1], False
                continue
            add(self.tokenizer.encode(pending), False)
            pending = ""
            if piece[0] == _OPEN_ANSWER:
                add(self.tokenizer.encode(piece[1:-1]), True)
                answer_open = True
            else:
                add([self.tokenizer.special_ids[piece]], answer_open)
                answer_open = False
        add(self.tokenizer.encode(pending + text[position:]), False)
        return RenderedChat(ids, is_answer)

    @functools.cached_property
    def _pieces(self) -> re.Pattern[str]:
        """A marked content, or a special token outside one."""
        names = sorted(self.tokenizer.special_ids, key=len, reverse=True)
        return re.compile("|".join([_CONTENT, *map(re.escape, names)]))


def _raise_from_template(message: str) -> None:
    raise TemplateError(message)
