"""Functions that a model may call: what is checked of them, and how they are put to it.

Templates that know tools describe them in their own way (text/chat passes them on); to all other models they are
described here, in a system message. Knows nothing of tokens or HTTP.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from danlu.core.errors import RequestError
from danlu.core.records import Message
from danlu.text.json_schema import close_objects, is_too_deep, parse_schema
from danlu.text.tool_formats import DIALECTS, ToolFormat

Tool = Mapping[str, Any]
"""A function in OpenAI's form: {"type": "function", "function": {"name", "description", "parameters", "strict"}}."""
ToolChoice = Literal["none", "auto", "required"] | Mapping[str, Any]
"""Also {"type": "function", "function": {"name": …}}: that one and no other."""
MAX_TOOLS = 128
_JOINS_ARGUMENTS = re.compile(r"\barguments(?:'\]|\"\])?\s*\+")
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


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
        parameters_of(tool, place)


def tool_schemas(tools: Sequence[Tool]) -> dict[str, Mapping[str, Any]]:
    """Names and schemas of the arguments of functions that were checked."""
    return {str(tool["function"]["name"]): tool["function"].get("parameters") or {} for tool in tools}


def parameters_of(tool: Tool, place: int) -> dict[str, Any]:
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


def as_template_sees(messages: Sequence[Message], form: ToolFormat, template: str) -> list[dict[str, Any]]:
    """The conversation for a template that knows tools: arguments are objects there, not texts of JSON, unless the
    template joins them to texts."""
    parsed = _written if _JOINS_ARGUMENTS.search(template) else _parsed
    seen: list[dict[str, Any]] = []
    for message in messages:
        turn: dict[str, Any] = dict(message)
        is_short = DIALECTS[form].has_short_ids
        if is_short and "tool_call_id" in turn:
            turn["tool_call_id"] = _nine(turn["tool_call_id"])
        if "tool_calls" in message:
            turn["tool_calls"] = [
                {
                    **call,
                    "id": _nine(call["id"]) if is_short else call["id"],
                    "function": {**call["function"], "arguments": parsed(call["function"]["arguments"])},
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
