import json
from typing import Any

import pytest

from danlu.core.errors import RequestError
from danlu.text.json_schema import close_objects, parse_schema, resolved, subschemas, text_kind


def refused(schema: Any, match: str) -> None:
    with pytest.raises(RequestError, match=match) as caught:
        parse_schema(schema if isinstance(schema, str) else json.dumps(schema), "response_format")
    assert (caught.value.status, caught.value.param) == (400, "response_format")


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def test_what_is_no_schema_is_refused() -> None:
    refused("{", r"The schema is not JSON: .* Send a JSON schema")
    refused("[" * 50_000, "The schema is not JSON: maximum recursion depth")
    refused("[1]", r"The schema is \[1\]\. Send an object")


def test_schemas_beyond_the_bounds_are_refused() -> None:
    refused(" " * 65_537, r"The schema has 65537 bytes\. Use at most 65536")
    refused(nested(64), r"nests more than 64 levels\. Flatten it, or use \$ref")
    refused(
        {"anyOf": [{"enum": list(range(3000))}, {"enum": list(range(3000))}]}, "has 6000 enum values. Use at most 5000"
    )
    refused({"properties": {f"p{i}": {} for i in range(401)}}, "has 401 properties. Use at most 400")
    refused({"multipleOf": 1_000_003}, "has multipleOf 1000003")
    refused({"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}, "least common multiple of all of them may")
    refused({"multipleOf": 0.000123457}, "has multipleOf 0.000123457")
    refused({"$defs": {"a": {"then": {"multipleOf": 10**80}}}}, "has multipleOf 10000000")


def test_usual_schemas_pass() -> None:
    for schema in (
        nested(62),
        {"multipleOf": 0.01},
        {"anyOf": [{"multipleOf": 2.5}, {"multipleOf": 1e-7}]},
        {"enum": [1]},
    ):
        assert parse_schema(json.dumps(schema), "x") == schema
    assert parse_schema("true", "x") is True


def test_formats_that_only_describe_are_left_out_and_names_are_not_taken_for_keywords() -> None:
    schema = {
        "properties": {"format": {"type": "string", "format": "binary"}, "day": {"format": "date"}},
        "x-guidance": {"lenient": True},
        "enum": [{"format": "binary"}],
    }
    assert parse_schema(json.dumps(schema), "x") == {
        "properties": {"format": {"type": "string"}, "day": {"format": "date"}},
        "enum": [{"format": "binary"}],
    }


def test_every_schema_within_a_schema_is_found() -> None:
    schema = {
        "$defs": {"a": {"const": 1}}, "allOf": [{"const": 2}], "items": [{"const": 3}],
        "additionalProperties": {"const": 4}, "patternProperties": {"^x": {"not": {"const": 5}}}, "if": True,
        "properties": {"items": {"items": {"const": 6}}},
    }  # fmt: skip
    assert sorted(part["const"] for part in subschemas(schema) if "const" in part) == [1, 2, 3, 4, 5, 6]


def test_objects_are_closed_unless_they_say_otherwise() -> None:
    schema: dict[str, Any] = {
        "properties": {"a": {"properties": {}}, "b": {"properties": {}, "additionalProperties": True}, "c": {}},
        "anyOf": [],
    }
    close_objects(schema)
    assert schema["properties"] == {
        "a": {"properties": {}, "additionalProperties": False},
        "b": {"properties": {}, "additionalProperties": True},
        "c": {},
    }
    assert "additionalProperties" not in schema  # what anyOf adds must stay possible


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "string"}, "text"),
        ({"enum": ["a", "b"]}, "text"),
        ({"const": "a"}, "text"),
        ({"$ref": "#/$defs/name"}, "text"),
        ({"type": ["string", "null"]}, "text or null"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text or null"),
        ({"anyOf": [{"type": "string"}, {"enum": ["a"]}]}, "text"),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, ""),
        ({"enum": ["a", 1]}, ""),
        ({"type": "integer"}, ""),
        ({"$ref": "#/$defs/loop"}, ""),
        ({"$ref": "#/nowhere/at/all"}, ""),
        (True, ""),
        ({}, ""),
    ],
)
def test_a_schema_tells_whether_its_values_are_texts(schema: Any, kind: str) -> None:
    root = {"$defs": {"name": {"type": "string"}, "loop": {"$ref": "#/$defs/loop"}}}
    assert text_kind(schema, root) == kind


def test_a_reference_leads_to_what_is_meant() -> None:
    assert resolved({"$ref": "#/$defs/a"}, {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"const": 1}}}) == {"const": 1}
    assert resolved({"$ref": "#/$defs/c"}, {"$defs": {}}) is None
