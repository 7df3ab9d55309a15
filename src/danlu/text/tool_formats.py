"""How families of models write calls of functions: one table, a row for each way.

A chat template tells which row is its model's; names of models never do. Knows nothing of parsing, grammars or tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

ToolFormat = Literal[
    "hermes", "llama3", "mistral", "mistral_args", "qwen3_coder", "glm", "deepseek", "deepseek_bare", "granite",
    "functools", "pythonic",
]  # fmt: skip
"""How a model writes calls; DIALECTS shows each."""

_CALLS_OPEN, _CALLS_CLOSE = "<\uff5ctool\u2581calls\u2581begin\uff5c>", "<\uff5ctool\u2581calls\u2581end\uff5c>"
_CALL_OPEN, _CALL_CLOSE = "<\uff5ctool\u2581call\u2581begin\uff5c>", "<\uff5ctool\u2581call\u2581end\uff5c>"
_SEPARATOR = "<\uff5ctool\u2581sep\uff5c>"
MARKERS = (
    "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<arg_key>", "</arg_key>",
    "<arg_value>", "</arg_value>", _CALLS_OPEN, _CALLS_CLOSE, _CALL_OPEN, _CALL_CLOSE, _SEPARATOR, "<|tool_call|>",
    "<|/tool_call|>", "<|python_start|>", "<|python_end|>",
)  # fmt: skip
"""Texts of tool calls that are special tokens of some models, and that a ToolParser has to see."""


@dataclass(frozen=True)
class Tags:
    """What stands around the arguments that a model writes one by one, each value as plain text or JSON."""

    key: tuple[str, str]
    value: tuple[str, str]
    end: str
    """What ends the call."""
    is_padded: bool = False
    """Whether a line break on either side of a value is not part of it."""


@dataclass(frozen=True)
class Dialect:
    """One way to write calls."""

    openings: tuple[str, ...]
    """What may stand before a call; the first one is usual, and opens the grammar of calls."""
    closings: tuple[str, ...] = ()
    """What may stand after a call, in this order."""
    separators: str = ""
    """Characters between calls of one opening."""
    heads: tuple[str, ...] = ("",)
    """What may stand between an opening and the call itself: ``*`` is the function's name, ``~`` an id."""
    body: Literal["{", "<", "("] = "{"
    """How the call itself begins, and so what it is: JSON, tags, or Python."""
    bare: str = ""
    """With which character an answer may begin with a call, without the opening."""
    tags: Tags | None = None
    has_short_ids: bool = False
    """Whether ids of calls have nine letters and digits: Mistral's templates take no other."""
    arguments_key: str = "arguments"
    """What a call in JSON has its arguments under."""


_MISTRAL = Dialect(
    ("[TOOL_CALLS]",), ("]",), ",", heads=("", "[", "*", "*[ARGS]", "*[CALL_ID]~", "*[CALL_ID]~[ARGS]"),
    has_short_ids=True,
)  # fmt: skip
_DEEPSEEK = Dialect(
    (_CALLS_OPEN, _CALL_OPEN), ("```", _CALL_CLOSE, _CALLS_CLOSE),
    heads=tuple(f"{first}{rest}" for first in ("", _CALL_OPEN)
                for rest in (f"function{_SEPARATOR}*```json", f"function{_SEPARATOR}*", f"*{_SEPARATOR}")),
)  # fmt: skip
DIALECTS: dict[ToolFormat, Dialect] = {
    # <tool_call>{"name": "f", "arguments": {…}}</tool_call>: Hermes, Qwen 2.5 and 3, Granite 4
    "hermes": Dialect(("<tool_call>",), ("</tool_call>",)),
    # {"name": "f", "parameters": {…}}: Llama 3 and 4
    "llama3": Dialect(("<|python_tag|>",), (), ";", bare="{", arguments_key="parameters"),
    # [TOOL_CALLS][{"name": "f", "arguments": {…}}, …], and [TOOL_CALLS]f[ARGS]{…}; read alike
    "mistral": _MISTRAL,
    "mistral_args": _MISTRAL,
    # <tool_call><function=f><parameter=key>value</parameter></function></tool_call>, often without <tool_call>
    "qwen3_coder": Dialect(
        ("<tool_call>", "<function="), ("</tool_call>",), heads=("<function=*>", "*>"), body="<",
        tags=Tags(("<parameter=", ">"), ("", "</parameter>"), "</function>", is_padded=True),
    ),
    # <tool_call>f<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>: GLM 4.5 and later
    "glm": Dialect(
        ("<tool_call>",), heads=("*",), body="<",
        tags=Tags(("<arg_key>", "</arg_key>"), ("<arg_value>", "</arg_value>"), "</tool_call>"),
    ),
    # DeepSeek V3 and R1 name the kind of call and fence its arguments; V3.1 does neither; read alike
    "deepseek": _DEEPSEEK,
    "deepseek_bare": _DEEPSEEK,
    # <|tool_call|>[{"name": "f", "arguments": {…}}, …]: Granite 3; Phi-4-mini also without the list, with an end
    "granite": Dialect(("<|tool_call|>",), ("]", "<|/tool_call|>"), ",", heads=("", "[")),
    # functools[{"name": "f", "arguments": {…}}, …]: Phi-4-mini
    "functools": Dialect(("functools[",), ("]",), ","),
    # [f(key="value"), …]: Gemma 3, Llama 3.2 and 4
    "pythonic": Dialect(
        ("<|python_start|>",), ("]", "<|python_end|>"), ",", heads=("[*", "*"), body="(", bare="[",
    ),
}  # fmt: skip


def detect_tool_format(template: str | None) -> ToolFormat | None:
    """How the model of a chat template writes calls; None when the template knows no tools, or writes them in a way
    that is not known here: the model is then told to write them as in "hermes"."""
    if template is None or not re.search(r"\btools\b", template):
        return None
    for sign, form in _SIGNS:
        if re.search(sign, template):
            return form
    return None


_SIGNS: tuple[tuple[str, ToolFormat | None], ...] = (
    (r"\[TOOL_CALLS\][\s\S]*\[ARGS\]|\[ARGS\][\s\S]*\[TOOL_CALLS\]", "mistral_args"),
    (r"\[TOOL_CALLS\]", "mistral"),
    (f"{_SEPARATOR}[\\s\\S]*```json", "deepseek"),
    (_SEPARATOR, "deepseek_bare"),
    (r"<arg_key>", "glm"),
    (r"<function=[\s\S]*<parameter=", "qwen3_coder"),
    (r"<function=|<\uff5c", None),
    (r"<tool_call>", "hermes"),
    (r"<\|tool_call\|>", "granite"),
    (r"functools\[", "functools"),
    (r"\[\w*func\w*\(", "pythonic"),
    (r"<\|python_tag\|>", "llama3"),
    (r'"parameters\\?":', "llama3"),
)
"""What a template has, the first of these counting, and what it means."""


def head_patterns(dialect: Dialect) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What a whole head looks like (its group "name", if any, is the function's), and what one may begin with."""
    wholes, starts = list[str](), list[str]()
    for head in dialect.heads:
        parts = re.findall(r"[*~]|[^*~]+", head)
        patterns = [_PARTS.get(part) or rf"\s*{re.escape(part)}\s*" for part in parts]
        wholes.append("".join(patterns))
        start = ""
        for part in reversed(parts):
            pieces = [_PARTS[part]] if part in _PARTS else [r"\s*", *map(re.escape, part), r"\s*"]
            for piece in reversed(pieces):
                start = f"(?:{piece}{start})?"
        starts.append(start)
    whole = "|".join(pattern.replace("NAME", f"name{place}") for place, pattern in enumerate(wholes))
    return re.compile(whole), re.compile("|".join(starts).replace("?P<NAME>", "?:"))


_PARTS = {"*": r"(?P<NAME>[\w.-]{1,128})", "~": r"[\w-]*"}
