"""JSON schemas from clients: their bounds, and what to change in them before a grammar is made of one.

Knows nothing of grammars, tokens or HTTP.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, Literal, cast

from danlu.core.errors import RequestError

MAX_SCHEMA_BYTES = 65_536
MAX_SCHEMA_DEPTH = 64
MAX_ENUM_VALUES = 5_000
"""Of all enums of a schema together."""
MAX_PROPERTIES = 400
"""Of one object."""
MAX_MULTIPLE = 10_000
"""Of the least common multiple of all multipleOf, in units of their last digit: an automaton has a state for each."""
KNOWN_FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid uri".split())  # noqa: SIM905
"""Those that answers can be held to; other formats are annotations, as the standard has it."""

_ONE = ("additionalProperties", "items", "not", "if", "then", "else", "contains", "propertyNames",
        "unevaluatedProperties", "unevaluatedItems", "additionalItems")  # fmt: skip
_MANY = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def parse_schema(text: str, param: str) -> dict[str, Any] | bool:
    """A schema that is small enough to make a grammar of, without what cannot matter to it. Raises RequestError."""
    size_bytes = len(text.encode("utf-8", "surrogatepass"))
    if size_bytes > MAX_SCHEMA_BYTES:
        raise RequestError(f"The schema has {size_bytes} bytes.", f"Use at most {MAX_SCHEMA_BYTES}.", param=param)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The schema is not JSON: {error}.", "Send a JSON schema.", param=param) from None
    if not isinstance(value, (dict, bool)):
        raise RequestError(f"The schema is {text:.40}.", 'Send an object such as {"type": "object"}.', param=param)
    if isinstance(value, dict):
        check_schema(cast("dict[str, Any]", value), param)
        _simplify(cast("dict[str, Any]", value))
    return cast("dict[str, Any] | bool", value)


def check_schema(schema: Mapping[str, Any], param: str) -> None:
    """Raises RequestError for what would cost too much to follow."""
    if is_too_deep(schema):
        raise RequestError(
            f"The schema nests more than {MAX_SCHEMA_DEPTH} levels.", "Flatten it, or use $ref.", param=param
        )
    num_values, multiple = 0, 1
    for part in subschemas(schema):
        values: Any = part.get("enum")
        num_values += len(values) if isinstance(values, list) else 0
        named: Any = part.get("properties")
        if isinstance(named, dict) and len(cast("dict[str, Any]", named)) > MAX_PROPERTIES:
            raise RequestError(
                f"An object of the schema has {len(cast('dict[str, Any]', named))} properties.",
                f"Use at most {MAX_PROPERTIES}.", param=param,
            )  # fmt: skip
        multiple = math.lcm(multiple, _units(part.get("multipleOf")))
        if multiple > MAX_MULTIPLE:
            raise RequestError(
                f"The schema has multipleOf {part['multipleOf']!r:.40}.",
                f"The least common multiple of all of them may be at most {MAX_MULTIPLE}, in units of the last digit.",
                param=param,
            )  # fmt: skip
    if num_values > MAX_ENUM_VALUES:
        raise RequestError(f"The schema has {num_values} enum values.", f"Use at most {MAX_ENUM_VALUES}.", param=param)


def subschemas(schema: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The schema and every schema within it."""
    waiting: list[Any] = [schema]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict):
            continue
        part = cast("dict[str, Any]", part)
        yield part
        waiting += [part.get(key) for key in _ONE]
        for key in _MANY:
            inner: Any = part.get(key)
            waiting += inner if isinstance(inner, list) else []
        for key in _NAMED:
            inner = part.get(key)
            waiting += cast("dict[str, Any]", inner).values() if isinstance(inner, dict) else []


def close_objects(schema: dict[str, Any]) -> None:
    """Objects that name their properties allow no others, unless the schema says that they do; changes ``schema``."""
    for part in subschemas(schema):
        if "properties" in part and not part.keys() & {"patternProperties", "allOf", "anyOf", "oneOf", "$ref"}:
            part.setdefault("additionalProperties", False)


def text_kind(schema: Any, root: Mapping[str, Any]) -> Literal["text", "text or null", ""]:
    """Whether the values of a schema are texts; ``root`` holds what it refers to."""
    schema = resolved(schema, root)
    if not isinstance(schema, dict):
        return ""
    given = cast("dict[str, Any]", schema)
    either: Any = given.get("anyOf") or given.get("oneOf")
    if isinstance(either, list) and either:
        kinds = {"null" if _is_null(one) else text_kind(one, {}) for one in cast("list[Any]", either)}
        return "text" if kinds == {"text"} else "text or null" if kinds == {"text", "null"} else ""
    types: Any = given.get("type")
    if types is None and ("enum" in given or "const" in given):
        values: Any = given.get("enum", [given.get("const")])
        return "text" if isinstance(values, list) and all(isinstance(v, str) for v in cast("list[Any]", values)) else ""
    if types == "string" or types == ["string"]:
        return "text"
    is_both = isinstance(types, list) and sorted(map(str, cast("list[Any]", types))) == ["null", "string"]
    return "text or null" if is_both else ""


def resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """A schema, or what it refers to in ``root``; None for what is not there."""
    for _ in range(8):  # a reference may lead to another
        if not isinstance(schema, dict) or "$ref" not in schema:
            break
        path = str(cast("dict[str, Any]", schema)["$ref"]).removeprefix("#/").split("/")
        schema = root
        for step in path:
            schema = cast("dict[str, Any]", schema).get(step) if isinstance(schema, Mapping) else None
    return schema


def _is_null(schema: Any) -> bool:
    return schema in ({"type": "null"}, {"const": None}, {"enum": [None]})


def _simplify(schema: dict[str, Any]) -> None:
    for part in subschemas(schema):
        part.pop("x-guidance", None)  # settings of the grammar engine are not the client's
        if isinstance(part.get("format"), str) and part["format"] not in KNOWN_FORMATS:
            del part["format"]


def is_too_deep(value: Any) -> bool:
    """Whether lists and objects lie in each other on more than MAX_SCHEMA_DEPTH levels."""
    level = [value]
    for _ in range(MAX_SCHEMA_DEPTH):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner += cast("dict[str, Any]", one).values()
            elif isinstance(one, list):
                inner += cast("list[Any]", one)
        level = [one for one in inner if isinstance(one, (dict, list))]
        if not level:
            return False
    return True


def _units(number: Any) -> int:
    """25 for 25, 0.25 and 2.5; 1 for what is no number."""
    if not isinstance(number, (int, float)) or isinstance(number, bool) or not math.isfinite(number):
        return 1
    if len(repr(number)) > 40:
        return MAX_MULTIPLE + 1
    return abs(Fraction(repr(number)) * 10 ** _digits(repr(number))).numerator or 1


def _digits(text: str) -> int:
    mantissa, _, exponent = text.lower().partition("e")
    return max(0, len(mantissa.partition(".")[2].rstrip("0")) - int(exponent or 0))
