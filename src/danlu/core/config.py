"""Strict configs: mappings become frozen dataclasses, an unknown key is an error naming the closest one.

Knows nothing of what any config means; validation of values belongs to each dataclass's ``__post_init__``.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

import yaml

from danlu.core.errors import ConfigError, DanluError, nearest

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's own scalars and no duplicate keys.

    ``1e-4`` is a number; ``no``, ``10:30``, ``010`` and ``2024-05-01`` stay text, which YAML 1.1 would turn into
    false, 630, 8 and a date.
    """


_SCALARS = {
    "merge": (r"<<", "<"),
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    "float": (r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+", "-+0123456789."),
}


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """PyYAML's table: the first letter of a plain scalar to the tags it may have."""
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, (pattern, first_letters) in _SCALARS.items():
        for letter in [*first_letters, *([""] if tag == "null" else [])]:
            table.setdefault(letter, []).append((f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$")))
    return table


_Loader.yaml_implicit_resolvers = _resolvers()


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            line = key_node.start_mark.line + 1
            raise ConfigError(f"A key must be a plain word (line {line}).", "Put quotes around it.")
        key = str(key_node.value)
        if key in seen:
            line = key_node.start_mark.line + 1
            raise ConfigError(f"'{key}' stands twice in one mapping (line {line}).", "Keep one of them.")
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)  # pyright: ignore[reportUnknownMemberType]


def parse_yaml(text: str, where: str) -> Any:
    """The value of one YAML document; ``where`` names the source in errors."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1})" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise ConfigError(f"{where} is not valid YAML{place}: {problem}.", "Mend the line it names.") from error
    except RecursionError as error:
        raise ConfigError(f"{where} is nested too deeply.", "A recipe needs a handful of levels.") from error


def from_mapping(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build the dataclass ``kind`` from ``values``; ``where`` is the dotted path shown in errors."""
    assert dataclasses.is_dataclass(kind)
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(f"Unknown key '{where}.{key}'.", nearest(str(key), fields))
        arguments[key] = _convert(hints[key], value, f"{where}.{key}")
    missing = [
        name
        for name, f in fields.items()
        if name not in arguments and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}.", "Add it to the recipe.")
    try:
        return cast(T, kind(**arguments))
    except DanluError as error:
        raise ConfigError(f"{where}: {error.message}", error.hint) from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    """``value`` as ``hint``, or a ConfigError that says what was expected and got."""
    origin, options = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(options, value, where)
    if origin is Literal:
        if not any(value == option and type(value) is type(option) for option in options):
            raise ConfigError(f"{where} is {value!r}.", f"Choose one of {', '.join(map(str, options))}.")
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_mapping(hint, _mapping(value, where), where)
    if origin in (tuple, list, Sequence):
        return _convert_list(origin, options, value, where)
    if origin in (dict, Mapping):
        return {str(k): _convert(options[1], v, f"{where}.{k}") for k, v in _mapping(value, where).items()}
    if hint is dict:
        return {str(k): v for k, v in _mapping(value, where).items()}
    return _convert_scalar(hint, value, where)


def _mapping(value: Any, where: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise _mismatch(where, "a mapping", value)
    return cast("Mapping[Any, Any]", value)


def _convert_list(origin: Any, options: tuple[Any, ...], value: Any, where: str) -> list[Any] | tuple[Any, ...]:
    """A list, a tuple of any length (``tuple[X, ...]``) or one of fixed length (``tuple[X, Y]``)."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise _mismatch(where, "a list", value)
    items = cast("Sequence[Any]", value)
    kinds = [options[0]] * len(items)
    if origin is tuple and options[-1] is not Ellipsis:
        if len(items) != len(options):
            raise _mismatch(where, f"a list of {len(options)}", value)
        kinds = list(options)
    converted = [_convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, items, strict=True))]
    return converted if origin is list else tuple(converted)


def _convert_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    """The first option that takes the value; when none does, the most telling complaint."""
    if value is None and type(None) in options:
        return None
    problems: list[tuple[Any, ConfigError]] = []
    for option in options:
        if option is type(None):
            continue
        try:
            return _convert(option, value, where)
        except ConfigError as error:
            problems.append((option, error))
    inside = [error for option, error in problems if isinstance(value, Mapping) and dataclasses.is_dataclass(option)]
    if len(problems) == 1 or inside:
        raise (inside or [problems[0][1]])[0]
    expected = " or ".join(_SCALAR_NAMES.get(option, _hint_name(option)) for option, _ in problems)
    raise _mismatch(where, expected, value)


def _hint_name(hint: Any) -> str:
    """A hint that is not a plain scalar, for a person."""
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    return "a list" if get_origin(hint) in (tuple, list, Sequence) else "a mapping"


_SCALAR_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    assert hint in _SCALAR_NAMES, f"{where}: a config field cannot be {hint}"
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise _mismatch(where, "a finite number", value)
        return float(value)
    if hint is str and isinstance(value, str):
        return value
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    raise _mismatch(where, _SCALAR_NAMES[hint], value)


def _mismatch(where: str, expected: str, value: Any) -> ConfigError:
    quotes = expected == "text" and isinstance(value, (bool, int, float))
    hint = "Put it in quotes." if quotes else "Mend it in the recipe or override."
    return ConfigError(f"{where} must be {expected}, got {value!r}.", hint)


def to_mapping(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values, keys in field order: what manifests keep and stage keys hash."""
    return cast("dict[str, Any]", _plain(config))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in cast("Sequence[Any]", value)]
    if isinstance(value, Path):
        return str(value)
    return value


def parse_override(text: str) -> tuple[list[str], Any]:
    """``a.b=3`` as (["a", "b"], 3); the value is YAML, so lists and numbers work."""
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"Override {text!r} is not KEY=VALUE.", "Write for example train.steps=50.")
    return keys, parse_yaml(value, f"override {text!r}")


def set_path(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set ``values[path[0]][path[1]]… = value``, making mappings on the way."""
    for key in path[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"Override {'.'.join(path)}: '{key}' is {inner!r}, not a mapping.", "Shorten the path.")
        values = cast("dict[str, Any]", inner)
    values[path[-1]] = value
