"""The folder is the registry: a plugin is one file exporting ``plugin``; listing a folder imports nothing.

Third parties add theirs through the entry point group ``danlu.<folder>`` (for example ``danlu.data.ops``).
"""

from __future__ import annotations

import importlib
import importlib.util
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from danlu.core.errors import ConfigError, nearest


def names(folder: str) -> list[str]:
    """Names of all plugins in ``folder`` (dotted below danlu, e.g. ``data.ops``), without importing any."""
    return sorted({*_own(folder), *_third_party(folder)})


def load(folder: str, name: str) -> Any:
    """The ``plugin`` of one file; an unknown name is an error naming the closest."""
    own, third_party = _own(folder), _third_party(folder)
    if name in own and name in third_party:
        raise ConfigError(
            f"Two {folder} plugins are called '{name}': danlu's own and {third_party[name].value}.",
            "Uninstall or rename the second.",
        )
    if name in own:
        return importlib.import_module(f"danlu.{folder}.{name}").plugin
    if name not in third_party:
        raise ConfigError(f"There is no {folder} plugin '{name}'.", nearest(name, names(folder)))
    try:
        return third_party[name].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"The {folder} plugin '{name}' ({third_party[name].value}) cannot be loaded: {error}.",
            "Update or uninstall the package it comes from.",
        ) from error


def _own(folder: str) -> set[str]:
    try:
        spec = importlib.util.find_spec(f"danlu.{folder}")
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"There is no plugin folder danlu.{folder}.", "Check the name.")
    return {
        path.stem
        for location in spec.submodule_search_locations
        for path in Path(location).glob("*.py")
        if not path.stem.startswith("_")
    }


def _third_party(folder: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"danlu.{folder}")}
