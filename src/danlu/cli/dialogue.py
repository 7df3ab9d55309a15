"""A conversation in a terminal: what was said, the commands that begin with a slash, and an answer as it is written.

Knows nothing of models or keyboards: something that streams answers and a stream to write to are given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, TextIO, cast

from danlu.core.config import from_mapping, parse_yaml, to_mapping
from danlu.core.errors import ConfigError, DanluError, DataError, nearest
from danlu.core.files import read_json_object, write_json
from danlu.core.records import Delta, GenerateOptions, Message, Prompt, Usage

HELP = """\
/help                 this list
/system TEXT          what the model is told before everything else; without TEXT shows it, with - drops it
/set NAME VALUE       for example /set temperature 0.7; without VALUE shows it, alone shows all that was changed
/retry                the last answer again
/undo                 take the last question and its answer back
/clear                begin anew
/tokens               tokens of the last request, and of the session
/stats                show or hide the speed after each answer
/save FILE            write the conversation as JSON: {"messages": [...]}
/load FILE            go on with a saved one
/exit                 leave, as Ctrl-D does

A line that ends with \\ goes on in the next one; three double quotes begin and end a text of several lines; // begins
a line that starts with a slash. Ctrl-C stops an answer."""
_ROLES = ("system", "user", "assistant", "tool")


class Streams(Protocol):
    """Writes answers: an engine or a client."""

    def stream(self, prompt: Prompt, options: GenerateOptions | None = None) -> Iterator[Delta]:
        """The answer piece by piece; leaving the loop early stops it."""
        ...


class Dialogue:
    """One conversation."""

    def __init__(
        self,
        model: Streams,
        options: GenerateOptions,
        *,
        out: TextIO,
        notes: TextIO,
        system: str = "",
        shows_stats: bool = False,
    ) -> None:
        """Answers go to ``out``; everything else that is said to the person goes to ``notes``."""
        self.options = options
        self.system = system
        self.turns: list[Message] = []
        self.shows_stats = shows_stats
        self.num_failed = 0
        self._model = model
        self._out = out
        self._notes = notes
        self._unanswered = ""
        self._last = Usage(prompt_tokens=0, completion_tokens=0)
        self._read = self._written = 0
        self._commands: Mapping[str, Callable[[str], bool | None]] = {
            "help": lambda _: self._say(HELP), "system": self._set_system, "set": self._set, "retry": self._retry,
            "undo": self._undo, "clear": self._clear, "tokens": self._tell_tokens, "stats": self._toggle_stats,
            "save": self._save, "load": self._load, "exit": lambda _: False, "quit": lambda _: False,
        }  # fmt: skip

    def take(self, text: str) -> bool:
        """Do what a text says: a command, or a question to the model. False when it says to leave."""
        if text.startswith("/") and not text.startswith("//"):
            name, _, rest = text[1:].strip().partition(" ")
            try:
                if name not in self._commands:
                    raise ConfigError(f"There is no command /{name}.", f"{nearest(name, self._commands)} See /help.")
                return self._commands[name](rest.strip()) is not False
            except DanluError as error:
                self._complain(error)
        elif text.strip():
            self.ask(text.removeprefix("/") if text.startswith("//") else text)
        return True

    def ask(self, text: str) -> bool:
        """Put a question and write its answer; False when there is none, and the question is not kept then."""
        self.turns.append({"role": "user", "content": text})
        try:
            answer = self._write()
        except DanluError as error:
            self.turns.pop()
            self._unanswered = text
            self.num_failed += 1
            self._complain(error)
            return False
        self._unanswered = ""
        self.turns.append({"role": "assistant", "content": answer})
        return True

    def load(self, path: Path) -> None:
        """Go on with a saved conversation; DataError when there is none at ``path``."""
        messages = read_messages(path)
        is_first_system = bool(messages) and messages[0]["role"] == "system"
        self.system = messages[0]["content"] if is_first_system else ""
        self.turns = messages[is_first_system:]
        self._say(f"{len(messages)} messages are loaded.")

    @property
    def messages(self) -> list[Message]:
        """All of it, in OpenAI's form."""
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.turns]

    def _write(self) -> str:
        """The answer, written as it comes. Ctrl-C ends it; what is written by then is kept."""
        pieces: list[str] = []
        began, first, usage = time.monotonic(), None, None
        try:
            with closing(cast("Any", self._model.stream(self.messages, self.options))) as deltas:
                for delta in deltas:
                    if delta.text and first is None:
                        first = time.monotonic()
                    pieces.append(delta.text)
                    usage = delta.usage or usage
                    self._out.write(delta.text)
                    self._out.flush()
        except KeyboardInterrupt:
            self._out.write(" …")
            self._say("\n(stopped)", end="")
        self._out.write("\n")
        self._out.flush()
        if usage is not None:
            self._count(usage, began, first or time.monotonic())
        return "".join(pieces)

    def _count(self, usage: Usage, began: float, first: float) -> None:
        self._last = usage
        self._read += usage.prompt_tokens
        self._written += usage.completion_tokens
        if not self.shows_stats:
            return
        seconds = time.monotonic() - first
        rate = f", {(usage.completion_tokens - 1) / seconds:.1f} tokens/s" if usage.completion_tokens > 1 else ""
        cached = f" ({usage.cached_tokens} from the cache)" if usage.cached_tokens else ""
        self._say(
            f"[{usage.prompt_tokens} tokens read{cached}, {first - began:.2f} s to the first word, "
            f"{usage.completion_tokens} written{rate}]"
        )

    def _say(self, text: str, end: str = "\n") -> None:
        self._notes.write(text + end)
        self._notes.flush()

    def _complain(self, error: DanluError) -> None:
        hint = error.hint
        if getattr(error, "code", None) == "context_length_exceeded":
            hint = f"{hint} /undo takes the last question back, /clear begins anew.".strip()
        self._say(f"error: {error.message} {hint}".rstrip())

    # commands

    def _set_system(self, text: str) -> None:
        if text:
            self.system = "" if text == "-" else text
        self._say(f"system: {self.system}" if self.system else "There is no system message.")

    def _set(self, text: str) -> None:
        name, _, value = text.partition(" ")
        name = name.replace("-", "_")
        values = to_mapping(self.options)
        if not name:
            plain = to_mapping(GenerateOptions())
            self._say("\n".join(f"{key} {value}" for key, value in values.items() if value != plain[key]) or "Nothing.")
            return
        known = [one.name for one in fields(GenerateOptions)]
        if name not in known:
            raise ConfigError(f"There is no setting '{name}'.", nearest(name, known))
        if value.strip():
            values[name] = parse_yaml(value.strip(), name)
            self.options = from_mapping(GenerateOptions, values, "/set")
        self._say(f"{name} {getattr(self.options, name)}")

    def _retry(self, _: str) -> None:
        question = self._unanswered or self._take_back()
        if not question:
            raise ConfigError("There is no question yet.", "Ask one.")
        self.ask(question)

    def _undo(self, _: str) -> None:
        question = self._take_back()
        self._say(
            f"taken back: {question.partition(chr(10))[0][:60]}" if question else "There is nothing to take back."
        )

    def _take_back(self) -> str:
        """The last question, which is no longer part of the conversation; empty when there is none."""
        while self.turns:
            turn = self.turns.pop()
            if turn["role"] == "user":
                return turn["content"]
        return ""

    def _clear(self, _: str) -> None:
        self.turns.clear()
        self._unanswered = ""
        self._say("A new conversation.")

    def _tell_tokens(self, _: str) -> None:
        last = self._last
        self._say(
            f"last: {last.prompt_tokens} read ({last.cached_tokens} from the cache), {last.completion_tokens} written; "
            f"session: {self._read} read, {self._written} written"
        )

    def _toggle_stats(self, _: str) -> None:
        self.shows_stats = not self.shows_stats
        self._say("The speed is shown." if self.shows_stats else "The speed is hidden.")

    def _save(self, file: str) -> None:
        if not file:
            raise ConfigError("/save needs a file.", "For example /save talk.json")
        write_json(Path(file).expanduser(), {"messages": self.messages})
        self._say(f"{len(self.messages)} messages are in {file}.")

    def _load(self, file: str) -> None:
        if not file:
            raise ConfigError("/load needs a file.", "For example /load talk.json")
        self.load(Path(file).expanduser())


def read_messages(path: Path) -> list[Message]:
    """The conversation of a JSON file with ``messages``; DataError when it holds none."""
    messages = read_json_object(path).get("messages")
    hint = 'It must hold {"messages": [{"role": "user", "content": "…"}, …]}, as /save writes it.'
    if not isinstance(messages, list):
        raise DataError(f"{path} holds no messages.", hint)
    for place, message in enumerate(cast("list[Any]", messages)):
        given = cast("dict[str, Any]", message) if isinstance(message, dict) else {}
        if given.get("role") not in _ROLES or not isinstance(given.get("content"), str):
            raise DataError(f"Message {place + 1} of {path} has no role or no text.", hint)
    return cast("list[Message]", messages)
