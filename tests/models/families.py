"""All parity cases of all families: name → Case. A new family appends to the table of its kind in cases/."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from . import cases
from .case import Case

_TABLES = [importlib.import_module(f"{cases.__name__}.{table.name}") for table in pkgutil.iter_modules(cases.__path__)]

FAMILIES: dict[str, Case] = {name: case for table in _TABLES for name, case in table.CASES.items()}


def families(applies: Callable[[Case], bool]) -> list[str]:
    """Names of the cases of which this holds."""
    return [name for name, case in FAMILIES.items() if applies(case)]
