"""JSON Schema of recipes for editors, made from the same dataclasses that check them; help lines become descriptions.

Knows nothing of what stages do. Loads every stage plugin.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from danlu.core import plugins
from danlu.core.config import to_mapping
from danlu.flow.recipe import ANY_INPUT, FOLDER, PluginLoader, RecipeConfig, RecipeStage, load_stage

_SCALARS: dict[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}


def recipe_schema() -> dict[str, Any]:
    """The schema of a whole recipe file."""
    schema = type_schema(RecipeConfig)
    uses = plugins.names(FOLDER)
    schema["properties"]["stages"]["items"] = {"oneOf": [stage_schema(use) for use in uses]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "danlu recipe", **schema}


def stage_schema(use: str, load_plugin: PluginLoader = load_stage) -> dict[str, Any]:
    """The schema of one entry of ``stages`` that uses this plugin."""
    plugin = load_plugin(use)
    schema = type_schema(plugin.config_type)
    if usual := getattr(plugin.config_type, "usual", None):
        schema["description"] = f"Where length and rate are left open: {usual}."
    common = {
        "name": {"type": "string", "description": "Unique; command-line settings start with it."},
        "use": {"const": use, "description": (inspect.getdoc(inspect.getmodule(plugin)) or "").partition("\n")[0]},
    }
    required = ["name", "use", *schema.get("required", [])]
    if plugin.inputs or plugin.optional_inputs:
        common["inputs"] = _inputs_schema(plugin)
        required += ["inputs"] if plugin.inputs else []
    return {**schema, "title": use, "properties": {**common, **schema["properties"]}, "required": required}


def _inputs_schema(plugin: RecipeStage[Any]) -> dict[str, Any]:
    known = {**plugin.inputs, **plugin.optional_inputs}
    help_any = known.pop(ANY_INPUT, None)
    properties = {name: {"type": "string", "description": text} for name, text in known.items()}
    rest: Any = {"type": "string", "description": help_any} if help_any else False
    return {
        "type": "object",
        "description": "Input name to the name of an earlier stage.",
        "properties": properties,
        "required": list(plugin.inputs),
        "additionalProperties": rest,
    }


def type_schema(hint: Any) -> dict[str, Any]:
    """The schema of one config type."""
    origin, options = get_origin(hint), get_args(hint)
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    if hint is type(None):
        return {"type": "null"}
    if origin in (Union, types.UnionType):
        return {"anyOf": [type_schema(option) for option in options]}
    if origin is Literal:
        return {"enum": list(options)}
    if origin in (tuple, list):
        return {"type": "array", "items": type_schema(options[0])}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": type_schema(options[1])}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _dataclass_schema(hint)
    return {}


def _dataclass_schema(kind: type[Any]) -> dict[str, Any]:
    hints, help_lines = typing.get_type_hints(kind), field_help(kind)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for field in dataclasses.fields(kind):
        schema = type_schema(hints[field.name])
        if field.name in help_lines:
            schema["description"] = help_lines[field.name]
        if field.default is not dataclasses.MISSING:
            schema["default"] = to_mapping(field.default)
        elif field.default_factory is dataclasses.MISSING:
            required.append(field.name)
        properties[field.name] = schema
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def field_help(kind: type[Any]) -> dict[str, str]:
    """The docstring under each field of a dataclass, read from its source; its bases' too."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = typing.cast("ast.ClassDef", ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]).body
        for field, text in itertools.pairwise(body):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found
