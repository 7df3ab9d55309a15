import json

from danlu.flow.schema import field_help, stage_schema, type_schema

from .conftest import Kitchen, WriteConfig


def test_the_schema_of_a_config_says_type_default_and_help() -> None:
    schema = type_schema(WriteConfig)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["steps"] == {"type": "integer", "default": 10, "description": "How often, at most."}
    assert schema["properties"]["mode"]["enum"] == ["fast", "slow"]
    assert schema["properties"]["lora"]["properties"]["rank"]["default"] == 8
    assert schema["properties"]["limit"]["anyOf"] == [{"type": "number"}, {"type": "null"}]
    assert schema["properties"]["sizes"]["additionalProperties"] == {"type": "integer"}


def test_help_is_the_docstring_under_each_field() -> None:
    assert field_help(WriteConfig)["text"] == "What to write."


def test_the_schema_of_a_stage_names_its_inputs(kitchen: Kitchen) -> None:
    schema = stage_schema("join", kitchen.load)
    inputs = schema["properties"]["inputs"]
    assert schema["properties"]["use"]["const"] == "join"
    assert inputs["required"] == ["rows"]
    assert inputs["additionalProperties"] is False
    assert "inputs" in schema["required"]
    assert stage_schema("write", kitchen.load)["properties"]["inputs"]["additionalProperties"]["type"] == "string"
    json.dumps(schema)
