"""Strict configs: mappings become frozen dataclasses, an unknown key is an error naming the closest one.

Knows nothing of what any config means; validation of values belongs to each dataclass's ``__post_init__``.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

import yaml

from danlu.core.errors import ConfigError, nearest

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers (``1e-4`` is a float) and no duplicate keys."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"), list("-+0123456789.")
)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if key in seen:
            raise ConfigError(f"'{key}' stands twice in one mapping ({key_node.start_mark}).", "Keep one of them.")
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)  # pyright: ignore[reportUnknownMemberType]


def parse_yaml(text: str, where: str) -> Any:
    """The value of one YAML document; ``where`` names the source in errors."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}", "Mend the line it names.") from error


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
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}", error.hint) from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    """``value`` as ``hint``, or a ConfigError that says what was expected and got."""
    origin, options = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(options, value, where)
    if origin is Literal:
        if value not in options:
            raise ConfigError(f"{where} is {value!r}.", f"Choose one of {', '.join(map(str, options))}.")
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise _mismatch(where, "a mapping", value)
        return from_mapping(hint, cast("Mapping[str, Any]", value), where)
    if origin in (tuple, list):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise _mismatch(where, "a list", value)
        items = cast("Sequence[Any]", value)
        converted = [_convert(options[0], item, f"{where}[{i}]") for i, item in enumerate(items)]
        return tuple(converted) if origin is tuple else converted
    if origin in (dict, Mapping) or hint is dict:
        if not isinstance(value, Mapping):
            raise _mismatch(where, "a mapping", value)
        mapping = cast("Mapping[Any, Any]", value)
        inner = options[1] if options else Any
        return {str(k): _convert(inner, v, f"{where}.{k}") for k, v in mapping.items()}
    return _convert_scalar(hint, value, where)


def _convert_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    problem: ConfigError | None = None
    for option in options:
        if option is type(None):
            continue
        try:
            return _convert(option, value, where)
        except ConfigError as error:
            problem = error
    assert problem is not None
    raise problem


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, str):
        return value
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    raise _mismatch(where, names.get(hint, str(hint)), value)


def _mismatch(where: str, expected: str, value: Any) -> ConfigError:
    return ConfigError(f"{where} must be {expected}, got {value!r}.", "Mend it in the recipe or override.")


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
    if not equals or not path.strip():
        raise ConfigError(f"Override {text!r} is not KEY=VALUE.", "Write for example train.steps=50.")
    return path.strip().split("."), parse_yaml(value, f"override {text!r}")


def set_path(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set ``values[path[0]][path[1]]… = value``, making mappings on the way."""
    for key in path[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"Override {'.'.join(path)}: '{key}' is {inner!r}, not a mapping.", "Shorten the path.")
        values = cast("dict[str, Any]", inner)
    values[path[-1]] = value
