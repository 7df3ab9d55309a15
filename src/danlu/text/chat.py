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
from itertools import product
from typing import Any, get_args

from danlu.core.errors import DanluError, DataError, ModelError, RequestError
from danlu.core.records import Message, Prompt, Role
from danlu.text.chat_encoder import ANSWER_OPEN, CONTENT_CLOSE, CONTENT_OPEN, ChatEncoder, RenderedChat
from danlu.text.template import GENERATION_CLOSE, GENERATION_OPEN, Template
from danlu.text.tokenizer import TextTokenizer
from danlu.text.tool_formats import ToolFormat, detect_tool_format
from danlu.text.tools import Tool, as_plain, as_template_sees, calls_as_text, check_tools

_MARKS = re.compile(f"[{CONTENT_OPEN}{ANSWER_OPEN}{CONTENT_CLOSE}{GENERATION_OPEN}{GENERATION_CLOSE}]")
_CONTENT = f"[{CONTENT_OPEN}{ANSWER_OPEN}][^{CONTENT_OPEN}{ANSWER_OPEN}{CONTENT_CLOSE}]*{CONTENT_CLOSE}"
_CONTENT_MARKS = re.compile(f"[{CONTENT_OPEN}{ANSWER_OPEN}{CONTENT_CLOSE}]")
_THOUGHT = re.compile(r"(\s*<think>\s*)(.*?)(\s*</think>\s*)", re.DOTALL)
_ROLES = get_args(Role)


def conversation(row: Mapping[str, Any]) -> list[Message]:
    """The messages of a row of data; DataError when it has none that can be used."""
    messages: Any = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise DataError(
            f"A row has messages {messages!r:.80}.", 'Give a list such as [{"role": "user", "content": "…"}, …].'
        )
    messages = [_with_content(message) for message in messages]
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise DataError(f"A row has the message {message!r:.80}.", "Each needs role and content, both texts.")
        if message["role"] not in _ROLES:
            raise DataError(f"A row has a message with the role {message['role']!r}.", f"Known: {', '.join(_ROLES)}.")
    return messages


def _with_content(message: Any) -> Any:
    """An assistant may call functions and say nothing."""
    is_silent = isinstance(message, dict) and message.get("tool_calls") and message.get("content") is None
    return {**message, "content": ""} if is_silent else message


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

    @functools.cached_property
    def knows_tools(self) -> bool:
        """Whether the template itself describes functions and writes their calls; other models are told in a system
        message."""
        return detect_tool_format(self.source) is not None

    @functools.cached_property
    def tool_format(self) -> ToolFormat:
        """How the model writes calls of functions."""
        return detect_tool_format(self.source) or "hermes"

    @functools.cached_property
    def starts_thinking(self) -> bool:
        """Whether the template opens a thought, so that answers begin within it."""
        return self._generation_prompt.rstrip().endswith("<think>")

    @functools.cached_property
    def _takes_system(self) -> bool:
        ask: list[Message] = [{"role": "system", "content": "sys"}, {"role": "user", "content": "x"}]
        try:
            return "sys" in self._render(ask, ["sys", "x"], True, {})
        except RequestError:
            return False

    def _render(
        self,
        turns: Sequence[Mapping[str, Any]],
        texts: Sequence[str],
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        """The template's text with ``texts`` as the turns' contents; ``variables`` may hold "tools"."""
        special = {"bos_token": "", "eos_token": "", **self.tokenizer.roles}
        messages = [{**turn, "content": text} for turn, text in zip(turns, texts, strict=True)]
        given = {"messages": messages, "add_generation_prompt": add_generation_prompt, "documents": None}
        try:
            return self._template.render({"tools": None, **variables, **special, **given})
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
        variables: Mapping[str, Any] | None = None,
        tools: Sequence[Tool] = (),
    ) -> RenderedChat:
        """Ids and answer mask. With ``add_generation_prompt`` the ids end where the assistant begins to write.

        ``variables`` are the template's own switches, such as Qwen3's ``enable_thinking``: those that the operator
        sets, or allows clients to set. ``tools`` are functions in OpenAI's form.
        """
        text, has_calls = self._marked(messages, add_generation_prompt, {**(variables or {})}, tools)
        if has_calls and not add_generation_prompt and GENERATION_OPEN not in text:
            raise DataError(
                "The chat template writes calls of functions in a way of its own, so they cannot be learnt.",
                "Use a template with {% generation %} tags around what the assistant writes.",
            )
        return self._encode(text)

    def _marked(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        variables: dict[str, Any],
        tools: Sequence[Tool],
    ) -> tuple[str, bool]:
        """The template's text, in which marks stand around whatever is not the template's own; and whether it has
        calls outside the marks."""
        if not messages:
            raise RequestError("messages is empty.", "Send at least one message.", param="messages")
        for message in messages:
            if message["role"] not in _ROLES:  # it stands in the text unmarked
                raise RequestError(
                    f"A message has the role {message['role']!r}.", f"Known: {', '.join(_ROLES)}.", param="messages"
                )
        check_tools(tools)
        has_calls = any("tool_calls" in message for message in messages)
        variables = _unmarked({**variables, "tools": list(tools) or None})
        if not self.knows_tools and (tools or has_calls):
            messages, has_calls = as_plain(messages, tools, takes_system=self._takes_system), False
            variables["tools"] = None
        turns: Sequence[Mapping[str, Any]] = messages
        if has_calls or self.knows_tools:
            turns = as_template_sees(messages, self.tool_format, self.source or "")
        plain = self._plain(turns, add_generation_prompt, variables)
        if has_calls and self.tool_format == "hermes":
            said = calls_as_text(messages)
            if self._plain(said, add_generation_prompt, variables) == plain:  # calls are ordinary text of this model
                messages, turns, has_calls = said, said, False
        contents = [_MARKS.sub("", message["content"]) for message in messages]
        turns, variables = self._guarded(_unmarked(turns)), self._guarded(variables)
        for marked in _markings(messages, contents):
            text = self._render(turns, marked, add_generation_prompt, variables)
            if _MARKS.sub("", text) == plain and not _CONTENT_MARKS.search(re.sub(_CONTENT, "", text)):
                return text, has_calls
        raise ModelError(
            "The chat template changes message texts, so roles in them cannot be told apart safely.",
            "Use a template that inserts each content as it is.",
        )

    def _plain(
        self, turns: Sequence[Mapping[str, Any]], add_generation_prompt: bool, variables: Mapping[str, Any]
    ) -> str:
        """The template's text without marks."""
        turns = _unmarked(turns)
        contents = [turn["content"] for turn in turns]
        return _MARKS.sub("", self._render(turns, contents, add_generation_prompt, variables))

    def _guarded(self, value: Any) -> Any:
        """Names, descriptions and arguments with marks around those that could spell a special token."""
        if isinstance(value, str):
            return f"{CONTENT_OPEN}{value}{CONTENT_CLOSE}" if self._suspicious.search(value) else value
        if isinstance(value, Mapping):
            return {self._guarded(key): self._guarded(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._guarded(inner) for inner in value]
        return value

    @functools.cached_property
    def _suspicious(self) -> re.Pattern[str]:
        """A special token, or a character that most words do without and special tokens have."""
        names = self.tokenizer.special_ids
        rare = sorted({c for name in names for c in name if not c.isalnum() and c not in " _-.,:"})
        return re.compile("|".join(map(re.escape, [*rare, *names])) or "(?!)")

    def prompt_ids(
        self, prompt: Prompt, *, tools: Sequence[Tool] = (), options: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Ids of whatever a model is asked to continue.

        Of ``options``, "add_generation_prompt" (True) and "continue_final_message" (False: the answer goes on with
        the assistant's last message) are read here; the others are variables of the template.
        """
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        variables = dict(options or {})
        adds_prompt = bool(variables.pop("add_generation_prompt", True))
        if not variables.pop("continue_final_message", False):
            return self._encode(self._marked(prompt, adds_prompt, variables, tools)[0]).ids
        if not prompt or prompt[-1]["role"] != "assistant" or not prompt[-1]["content"].strip():
            raise RequestError(
                "continue_final_message is set, but no assistant's text comes last.",
                "End the messages with what the assistant has to go on with.", param="continue_final_message",
            )  # fmt: skip
        text, _ = self._marked(prompt, False, variables, tools)
        return self._encode(text[: text.index(CONTENT_CLOSE, text.rindex(ANSWER_OPEN)) + 1]).ids

    @functools.cached_property
    def _generation_prompt(self) -> str:
        """What the template adds for the assistant to go on: "<|im_start|>assistant\n", for example."""
        ask: list[Message] = [{"role": "user", "content": "x"}]
        try:
            short, long = (self._render(ask, ["x"], prompt, {}) for prompt in (False, True))
        except RequestError:
            return ""
        return long.removeprefix(short) if long.startswith(short) else ""

    @functools.cached_property
    def _answer_start(self) -> str:
        """What stands between the generation prompt's last special token and an answer: "assistant\n", for example."""
        added = self._generation_prompt
        specials = list(self._pieces.finditer(added))
        return added[specials[-1].end() :] if specials else ""

    def _encode(self, text: str) -> RenderedChat:
        return ChatEncoder(self.tokenizer, self._answer_start, has_tags=GENERATION_OPEN in text).run(text, self._pieces)

    @functools.cached_property
    def _pieces(self) -> re.Pattern[str]:
        """A marked content, an end of a generation block, or a special token outside a content."""
        names = sorted(self.tokenizer.special_ids, key=len, reverse=True)
        return re.compile("|".join([_CONTENT, GENERATION_OPEN, GENERATION_CLOSE, *map(re.escape, names)]))


def _markings(messages: Sequence[Message], contents: Sequence[str]) -> Iterator[list[str]]:
    """Contents with marks, in every way that templates need: around all of it; inside the space that many templates
    strip, for everybody else's texts or the assistant's; and with the assistant's thoughts apart from what it said."""
    seen: set[tuple[str, ...]] = set()
    for splits_thoughts, (strips_answers, strips_others) in product((False, True), product((False, True), repeat=2)):
        marked: list[str] = []
        for message, text in zip(messages, contents, strict=True):
            is_answer = message["role"] == "assistant"
            if not text and "tool_calls" in message:  # templates ask whether anything was said
                marked.append("")
                continue
            mark = ANSWER_OPEN if is_answer else CONTENT_OPEN
            thought = _THOUGHT.match(text) if is_answer and splits_thoughts else None
            pieces = []
            if thought:
                before, inside, after = thought.groups()
                pieces, text = (
                    [before, f"{mark}{inside}{CONTENT_CLOSE}" if inside else "", after],
                    text[thought.end() :],
                )
            strips = strips_answers if is_answer else strips_others
            marked.append("".join(pieces) + (_mark_inside(mark, text) if strips else f"{mark}{text}{CONTENT_CLOSE}"))
        if tuple(marked) not in seen:
            seen.add(tuple(marked))
            yield marked


def _unmarked(value: Any) -> Any:
    """The same names and texts without characters that only marks have."""
    if isinstance(value, str):
        return _MARKS.sub("", value)
    if isinstance(value, Mapping):
        return {_unmarked(key): _unmarked(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_unmarked(inner) for inner in value]
    return value


def _mark_inside(mark: str, text: str) -> str:
    core = text.strip()
    start = text.index(core)
    return f"{text[:start]}{mark}{core}{CONTENT_CLOSE}{text[start + len(core) :]}"
