"""The folder is the registry: a plugin is one file exporting ``plugin``; listing a folder imports nothing.

Third parties add theirs through the entry point group ``danlu.<folder>`` (for example ``danlu.data.ops``).
"""

from __future__ import annotations

import importlib
import importlib.util
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from danlu.core.errors import ConfigError, nearest


def names(folder: str) -> list[str]:
    """Names of all plugins in ``folder`` (dotted below danlu, e.g. ``data.ops``), without importing any."""
    spec = importlib.util.find_spec(f"danlu.{folder}")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"There is no plugin folder danlu.{folder}.", "Check the name.")
    found = {
        path.stem
        for location in spec.submodule_search_locations
        for path in Path(location).glob("*.py")
        if not path.stem.startswith("_")
    }
    found.update(point.name for point in entry_points(group=f"danlu.{folder}"))
    return sorted(found)


def load(folder: str, name: str) -> Any:
    """The ``plugin`` of one file; an unknown name is an error naming the closest."""
    known = names(folder)
    if name not in known:
        raise ConfigError(f"There is no {folder.replace('.', ' ')} plugin '{name}'.", nearest(name, known))
    for point in entry_points(group=f"danlu.{folder}"):
        if point.name == name:
            return point.load()
    return importlib.import_module(f"danlu.{folder}.{name}").plugin
