"""The grammar of an answer that calls functions, in the way that the model writes calls.

Written in Lark's notation, with two additions that whoever knows the model's tokens resolves: ``<@"text">`` is a
special token of that name where the model has one, else the text; a rule of ``<@..."text">`` alone is any text up to
and with that. Knows nothing of tokens or HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from danlu.core.errors import RequestError
from danlu.text.json_schema import resolved, text_kind
from danlu.text.tool_formats import DIALECTS, Tags, ToolFormat
from danlu.text.tools import Tool, ToolChoice, check_tools, parameters_of

MAX_CALLS = 16
"""In one answer, where a grammar holds."""
TOOL_GRAMMAR = "// calls of functions"
"""First line of every grammar made here."""
_SHARED = ("$defs", "definitions", "x-guidance")
"""Of a schema: what belongs to all parts of it."""
_UNHELD = ("pattern", "minLength", "maxLength", "format")
"""What a text between tags cannot be held to."""


@dataclass(frozen=True)
class ToolGrammar:
    """A context-free grammar, in force after the text ``after``, or from the start without one."""

    text: str
    after: str


@dataclass(frozen=True)
class _Frame:
    """What stands around calls, in Lark's notation; ``…`` is the usual opening."""

    lead: str = ""
    """Between the opening and the first call, where it may be left out."""
    first: str = ""
    """Before the first call."""
    after: str = ""
    """After each call."""
    then: str = ""
    """Before each further call."""
    last: str = ""
    """At the end."""
    opens: bool = True
    """Whether an answer that has to be a call begins with the opening."""


_CALL_OPEN, _SEPARATOR, _CALL_CLOSE, _CALLS_CLOSE = (
    f'<@"<\uff5ctool\u2581{name}\uff5c>">' for name in ("call\u2581begin", "sep", "call\u2581end", "calls\u2581end")
)
_FRAMES: dict[ToolFormat, _Frame] = {
    "hermes": _Frame(lead='"\\n"', after='"\\n" <@"</tool_call>">', then='"\\n" … "\\n"'),
    "llama3": _Frame(then='"; "', opens=False),
    "mistral": _Frame(first='"["', then='", "', last='"]"'),
    "mistral_args": _Frame(then="…"),
    "qwen3_coder": _Frame(lead='"\\n"', after='"\\n" <@"</tool_call>">', then='"\\n" … "\\n"'),
    "glm": _Frame(then='"\\n" …'),
    "deepseek": _Frame(then='"\\n"', last=_CALLS_CLOSE),
    "deepseek_bare": _Frame(last=_CALLS_CLOSE),
    "granite": _Frame(first='"["', then='", "', last='"]"'),
    "functools": _Frame(then='", "', last='"]"'),
    "pythonic": _Frame(first='"["', then='", "', last='"]"', opens=False),
}


def tool_grammar(
    tools: Sequence[Tool], choice: ToolChoice, form: ToolFormat, *, is_parallel: bool = True, is_whole: bool = False
) -> ToolGrammar | None:
    """What an answer has to look like so that its calls can be read; None when anything goes.

    With "required" and with a name the whole answer is calls; with "auto" the grammar holds as soon as the model opens
    a call, or, where the answer can only be calls or something else (``is_whole``), from its beginning. Without
    ``is_parallel`` there is one call. Raises RequestError as ``check_tools``, and for choices that cannot be met.
    """
    check_tools(tools)
    chosen = [(place, tool) for place, tool in enumerate(tools)]
    if isinstance(choice, Mapping):
        inner: Any = choice.get("function", choice)
        name: Any = cast("Mapping[str, Any]", inner).get("name") if isinstance(inner, Mapping) else None
        chosen = [(place, tool) for place, tool in chosen if tool["function"]["name"] == name]
        if not chosen:
            raise RequestError(
                f"tool_choice names {name!r:.80}, which is not among the tools.", "Name one of them.",
                param="tool_choice",
            )  # fmt: skip
    elif choice not in ("none", "auto", "required"):
        raise RequestError(
            f"tool_choice is {choice!r:.80}.", 'Use "none", "auto", "required" or a function.', param="tool_choice"
        )
    elif choice == "required" and not tools:
        raise RequestError("tool_choice is required, but there are no tools.", "Send tools.", param="tools")
    if choice == "none" or not chosen:
        return None
    num_more = MAX_CALLS - 1 if is_parallel and not isinstance(choice, Mapping) else 0
    opening, frame = f'<@"{DIALECTS[form].openings[0]}">', _FRAMES[form]
    is_lazy = choice == "auto" and not is_whole
    opened = "" if is_lazy or not (frame.opens or is_whole) else opening if frame.opens else f"{opening}?"
    first = f"{opened} {'' if is_lazy else frame.lead} {frame.first} one {frame.after}"
    then = f"{frame.then.replace('…', opening)} one {frame.after}"
    more = f"more{{0,{num_more}}}" if num_more else ""
    rules = [TOOL_GRAMMAR, f"start: {first} {more} {frame.last}", *([f"more: {then}"] if num_more else [])]
    rules.append("one: " + " | ".join(f"t{number}" for number in range(len(chosen))))
    for number, (place, tool) in enumerate(chosen):
        rules += _call(number, tool, place, form, is_whole)
    return ToolGrammar(text="\n".join(rules) + "\n", after=DIALECTS[form].openings[0] if is_lazy else "")


def _call(number: int, tool: Tool, place: int, form: ToolFormat, is_whole: bool) -> list[str]:
    """The rules of one function: t<number> is its call."""
    name, parameters = str(tool["function"]["name"]), parameters_of(tool, place)
    dialect = DIALECTS[form]
    if dialect.tags is not None:
        head, end = (
            (f"<function={name}>\n", '"</function>"') if form == "qwen3_coder" else (name, '"\\n" <@"</tool_call>">')
        )
        return _tagged(number, parameters, dialect.tags, head, end, bool(tool["function"].get("strict")), place)
    if dialect.body == "(":
        return _python(number, parameters, name)
    rules = [f"p{number}: %json {json.dumps(parameters)}"]
    if form == "mistral_args":
        return [f't{number}: {json.dumps(name)} <@"[ARGS]"> p{number}', *rules]
    if form == "deepseek":
        head = f'{_CALL_OPEN} "function" {_SEPARATOR} {_text(name + chr(10) + "```json" + chr(10))}'
        return [f't{number}: {head} p{number} "\\n```" {_CALL_CLOSE}', *rules]
    if form == "deepseek_bare":
        return [f"t{number}: {_CALL_OPEN} {_text(name)} {_SEPARATOR} p{number} {_CALL_CLOSE}", *rules]
    if form == "llama3" and is_whole:  # JSON as well as what else may be written: both have to begin alike
        return [f"t{number}: %json {json.dumps(_as_object(name, parameters))}"]
    before = _text(f'{{"name": {json.dumps(name)}, "{dialect.arguments_key}": ')
    return [f't{number}: {before} p{number} "}}"', *rules]


def _as_object(name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a call that is an object with a name and parameters."""
    shared = {key: parameters[key] for key in _SHARED if key in parameters}
    own = {key: value for key, value in parameters.items() if key not in _SHARED}
    keys = {"name": {"const": name}, "parameters": own}
    return {"type": "object", "properties": keys, "required": [*keys], "additionalProperties": False, **shared}


def _tagged(
    number: int, parameters: Mapping[str, Any], tags: Tags, head: str, end: str, is_strict: bool, place: int
) -> list[str]:
    """Arguments between tags, in the order of the schema."""
    parts, rules, has_text = list[str](), list[str](), False
    closed = _text("\n</parameter>\n") if tags.is_padded else f'<@"{tags.value[1]}">'
    for at, (key, schema, is_required) in enumerate(_properties(parameters)):
        rule = f"p{number}_{at}"
        kind = text_kind(schema, parameters)
        meant: Any = resolved(schema, parameters)
        values: Any = meant.get("enum") if kind else None
        if is_strict and kind and (wrong := [name for name in _UNHELD if name in meant]):
            raise RequestError(
                f"The schema uses {wrong[0]}, which this model's calls cannot be held to.", "Leave it out.",
                param=f"tools[{place}].function.parameters", code="unsupported_keyword",
            )  # fmt: skip
        if kind == "text" and isinstance(values, list) and all(isinstance(v, str) and v for v in values):
            value = f"({' | '.join(map(_text, values))}) {closed}"
        elif kind:
            value, has_text = f"text{number}", True
        else:
            value = f"{rule} {closed}"
            rules.append(f"{rule}: %json {json.dumps(schema)}")
        if tags.is_padded:
            before = _text(f"<parameter={key}>\n")
        else:
            before = f'"\\n" <@"{tags.key[0]}"> {_text(key)} <@"{tags.key[1]}"> "\\n" <@"{tags.value[0]}">'
        parts.append(f"{before} {value}" if is_required else f"({before} {value})?")
    if has_text:
        rules.append(
            f"text{number}[lazy]: /(.|\\n)*\\n<\\/parameter>\\n/" if tags.is_padded
            else f'text{number}: <@..."{tags.value[1]}">'
        )  # fmt: skip
    return [f"t{number}: {_text(head)} {' '.join(parts)} {end}", *rules]


def _python(number: int, parameters: Mapping[str, Any], name: str) -> list[str]:
    """Keywords and values, those that must be there first; ``o`` rules are what may follow when nothing stands before,
    ``r`` rules when something does."""
    rules, needed, others = list[str](), list[str](), list[str]()
    for at, (key, schema, is_required) in enumerate(_properties(parameters)):
        rule = f"p{number}_{at}"
        is_flag = isinstance(schema, dict) and schema.get("type") == "boolean"
        rules.append(f'{rule}: "True" | "False"' if is_flag else f"{rule}: %json {json.dumps(schema)}")
        (needed if is_required else others).append(f"{_text(key + '=')} {rule}")
    for at, part in enumerate(others):
        is_last = at == len(others) - 1
        rules.append(f'r{number}_{at}: (", " {part})?' + (f" r{number}_{at + 1}" if not is_last else ""))
        rest = f" r{number}_{at + 1}" if not is_last else ""
        rules.append(f"o{number}_{at}: {part}{rest}" + (f" | o{number}_{at + 1}" if not is_last else ""))
    inside = ' ", " '.join(needed)
    if others:
        inside = f"{inside} r{number}_0" if needed else f"o{number}_0?"
    return [f't{number}: {_text(name + "(")} {inside} ")"', *rules]


def _properties(parameters: Mapping[str, Any]) -> list[tuple[str, Any, bool]]:
    """Names and schemas of arguments, each schema with what it may refer to; and whether each is required."""
    shared = {key: parameters[key] for key in _SHARED if key in parameters}
    required: Any = parameters.get("required")
    properties: Any = parameters.get("properties")
    found = cast("dict[str, Any]", properties) if isinstance(properties, dict) else {}
    needed = cast("list[Any]", required) if isinstance(required, list) else []
    return [
        (key, {**shared, **schema} if isinstance(schema, dict) else schema, key in needed)
        for key, schema in found.items()
    ]


def _text(text: str) -> str:
    """A text in Lark's notation."""
    return json.dumps(text, ensure_ascii=False)
