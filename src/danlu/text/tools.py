"""Functions that a model may call: what is checked of them, how they are put to it, and the grammar of its calls.

Templates that know tools describe them in their own way (text/chat passes them on); to all other models they are
described here, in a system message. Knows nothing of tokens or HTTP.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from danlu.core.errors import RequestError
from danlu.core.records import Message
from danlu.text.json_schema import close_objects, is_too_deep, parse_schema
from danlu.text.tool_parser import ToolFormat

Tool = Mapping[str, Any]
"""A function in OpenAI's form: {"type": "function", "function": {"name", "description", "parameters", "strict"}}."""
ToolChoice = Literal["none", "auto", "required"] | Mapping[str, Any]
"""Also {"type": "function", "function": {"name": …}}: that one and no other."""
MAX_TOOLS = 128
MAX_CALLS = 16
"""In one answer, where a grammar holds."""


@dataclass(frozen=True)
class ToolGrammar:
    """A context-free grammar in Lark's notation, in force after the text ``after``, or from the start without one.

    ``<@"text">`` in it is a marker: a special token of that name where the model has one, else the text.
    """

    text: str
    after: str


_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
TOOL_GRAMMAR = "// calls of functions"
"""First line of every grammar made here."""
_TRIGGERS: dict[ToolFormat, str] = {
    "hermes": "<tool_call>", "llama3": "<|python_tag|>", "mistral": "[TOOL_CALLS]", "mistral_args": "[TOOL_CALLS]",
}  # fmt: skip


def detect_tool_format(template: str | None) -> ToolFormat | None:
    """How the model of a chat template writes calls; None when the template knows no tools, or writes them in a way
    that is not known here: the model is then told to write them as in "hermes"."""
    if template is None or not re.search(r"\btools\b", template):
        return None
    if "[TOOL_CALLS]" in template:
        return "mistral_args" if "[ARGS]" in template else "mistral"
    if "<tool_call>" in template and not re.search(r"<arg_key>|<function=|<\uff5c", template):
        return "hermes"
    if "<|python_tag|>" in template or re.search(r'"parameters\\?":', template):
        return "llama3"
    return None


def check_tools(tools: Sequence[Tool]) -> None:
    """Raises RequestError for what is no function in OpenAI's form."""
    if len(tools) > MAX_TOOLS:
        raise RequestError(f"There are {len(tools)} tools.", f"Use at most {MAX_TOOLS}.", param="tools")
    seen: set[str] = set()
    for place, tool in enumerate(tools):
        function: Any = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict) or is_too_deep(tool):
            raise RequestError(
                f"tools[{place}] has the type {tool.get('type')!r:.40}.",
                'Only functions are known: {"type": "function", "function": {"name": …}}.',
                param=f"tools[{place}].type",
            )  # fmt: skip
        name: Any = cast("dict[str, Any]", function).get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise RequestError(
                f"tools[{place}] has the name {name!r:.80}.", "Use 1 to 64 letters, digits, _, - or dots.",
                param=f"tools[{place}].function.name",
            )  # fmt: skip
        if name in seen:
            raise RequestError(
                f"Two tools have the name {name!r}.", "Rename one.", param=f"tools[{place}].function.name"
            )
        seen.add(name)
        _parameters(tool, place)


def tool_names(tools: Sequence[Tool]) -> tuple[str, ...]:
    """Of functions that were checked."""
    return tuple(str(tool["function"]["name"]) for tool in tools)


def tool_grammar(
    tools: Sequence[Tool], choice: ToolChoice, form: ToolFormat, *, is_parallel: bool = True
) -> ToolGrammar | None:
    """What an answer has to look like so that its calls can be read; None when anything goes.

    With "required" and with a name the whole answer is calls; with "auto" the grammar holds as soon as the model opens
    a call. Without ``is_parallel`` there is one call. Raises RequestError as ``check_tools``, and for choices that
    cannot be met.
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
    is_lazy = choice == "auto"
    num_more = MAX_CALLS - 1 if is_parallel and not isinstance(choice, Mapping) else 0
    return ToolGrammar(text=_lark(chosen, form, is_lazy, num_more), after=_TRIGGERS[form] if is_lazy else "")


def _lark(chosen: Sequence[tuple[int, Tool]], form: ToolFormat, is_lazy: bool, num_more: int) -> str:
    """The grammar of one call and up to ``num_more`` others; a lazy one begins after the opening."""
    opening = f'<@"{_TRIGGERS[form]}">'
    opened, then = "" if is_lazy or form == "llama3" else opening, '"; " one'
    first = f"{opened} one"
    if form == "hermes":
        rest = 'one "\\n" <@"</tool_call>">'
        first, then = f'{opened} "\\n" {rest}' if opened else rest, f'"\\n" {opening} "\\n" {rest}'
    elif form == "mistral":
        first, then = f'{opened} "[" one', '", " one'
    elif form == "mistral_args":
        then = f"{opening} one"
    more, last = f"more{{0,{num_more}}}" if num_more else "", '"]"' if form == "mistral" else ""
    rules = [TOOL_GRAMMAR, f"start: {first} {more} {last}", *([f"more: {then}"] if num_more else [])]
    rules.append("one: " + " | ".join(f"t{number}" for number in range(len(chosen))))
    for number, (place, tool) in enumerate(chosen):
        name, parameters = str(tool["function"]["name"]), _parameters(tool, place)
        if form == "mistral_args":
            rules.append(f't{number}: {json.dumps(name)} <@"[ARGS]"> p{number}')
        else:
            key = "parameters" if form == "llama3" else "arguments"
            before = json.dumps(f'{{"name": {json.dumps(name)}, "{key}": ')
            rules.append(f't{number}: {before} p{number} "}}"')
        rules.append(f"p{number}: %json {json.dumps(parameters)}")
    return "\n".join(rules) + "\n"


def _parameters(tool: Tool, place: int) -> dict[str, Any]:
    """The schema of a function's arguments, closed: a function called with an argument it has not would fail."""
    function = tool["function"]
    given: Any = function.get("parameters")
    where = f"tools[{place}].function.parameters"
    if given is None:
        given = {"type": "object", "properties": {}}
    if not isinstance(given, dict) or given.get("type", "object") != "object":
        raise RequestError(
            f"The parameters of {function['name']} are {given!r:.60}.", 'Send a schema with "type": "object".',
            param=where,
        )  # fmt: skip
    schema = parse_schema(json.dumps(given), where)
    assert isinstance(schema, dict)
    schema = {**schema, "type": "object"}
    close_objects(schema)
    if not function.get("strict"):
        schema["x-guidance"] = {"lenient": True}  # keywords that cannot be held to are left out
    return schema


# ---- models whose templates know no tools ----------------------------------------------------------------------------

_INSTRUCTIONS = """\
You can call functions. Each line between <tools> and </tools> describes one: its name, what it does and a JSON schema \
of its arguments.
<tools>
{tools}
</tools>
To call a function, write its name and its arguments as JSON in this form, once for each call, and then stop:
<tool_call>
{{"name": "the function's name", "arguments": {{"argument": "value"}}}}
</tool_call>
The results come back between <tool_response> and </tool_response>. If no function helps, answer without one."""


def describe_tools(tools: Sequence[Tool]) -> str:
    """What a model is told of its functions when its template has no words for them."""
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    return _INSTRUCTIONS.format(tools="\n".join(lines))


def as_plain(messages: Sequence[Message], tools: Sequence[Tool], *, takes_system: bool) -> list[Message]:
    """The conversation in roles that every template knows: tools in the system message (or, where there is none, the
    first), calls as the text that makes them, results as the user's."""
    plain: list[Message] = []
    for message in calls_as_text(messages):
        role, content = message["role"], message["content"]
        if role == "tool":
            content = f"<tool_response>\n{content}\n</tool_response>"
            if plain and plain[-1]["role"] == "user" and plain[-1]["content"].endswith("</tool_response>"):
                plain[-1]["content"] += f"\n{content}"
                continue
            role = "user"
        plain.append({"role": role, "content": content})
    if tools:
        described = describe_tools(tools)
        if plain and (plain[0]["role"] == "system" or not takes_system):
            plain[0]["content"] = "\n\n".join(filter(None, [plain[0]["content"], described]))
        else:
            plain.insert(0, {"role": "system", "content": described})
    return plain


def calls_as_text(messages: Sequence[Message]) -> list[Message]:
    """The conversation with its calls as the text that makes them, in the form "hermes"."""
    said: list[Message] = []
    for message in messages:
        calls = [
            '<tool_call>\n{"name": ' + json.dumps(call["function"]["name"])
            + f', "arguments": {_written(call["function"]["arguments"])}}}\n</tool_call>'
            for call in message.get("tool_calls", ())
        ]  # fmt: skip
        turn = message.copy()
        turn.pop("tool_calls", None)
        turn["content"] = "\n".join(filter(None, [message["content"], *calls]))
        said.append(turn)
    return said


def as_template_sees(messages: Sequence[Message], form: ToolFormat) -> list[dict[str, Any]]:
    """The conversation for a template that knows tools: arguments are objects there, not texts of JSON."""
    seen: list[dict[str, Any]] = []
    for message in messages:
        turn: dict[str, Any] = dict(message)
        is_short = form in ("mistral", "mistral_args")
        if is_short and "tool_call_id" in turn:
            turn["tool_call_id"] = _nine(turn["tool_call_id"])
        if "tool_calls" in message:
            turn["tool_calls"] = [
                {
                    **call,
                    "id": _nine(call["id"]) if is_short else call["id"],
                    "function": {**call["function"], "arguments": _parsed(call["function"]["arguments"])},
                }
                for call in message["tool_calls"]
            ]
        seen.append(turn)
    return seen


def _written(arguments: str) -> str:
    """The JSON as templates write it."""
    value = _parsed(arguments)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _parsed(arguments: str) -> Any:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments  # what a model once wrote, broken as it is
    return value if isinstance(value, dict) and not is_too_deep(value) else arguments


def _nine(call_id: str) -> str:
    """Nine letters and digits: Mistral's templates refuse other ids, and those of other models come here too."""
    if re.fullmatch(r"[a-zA-Z0-9]{9}", call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]
