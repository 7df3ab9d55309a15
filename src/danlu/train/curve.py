"""The curve of a run as JSON lines: a line a step, more for validations and samples; cut back on resume."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danlu.core.files import atomic_write


class CurveLog:
    """Lines kept in memory and in a file, which one process of a run writes."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self._path = path
        self._writes = writes
        self.lines: list[dict[str, Any]] = []

    def truncate(self, count: int) -> None:
        """Keep the first ``count`` lines of the file and go on after them."""
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        old = text.split("\n")[:-1][:count]  # not splitlines: a sample may hold any other kind of line end
        self.lines = [json.loads(line) for line in old]
        if self._writes:
            with atomic_write(self._path) as handle:  # whoever reads it now, or after a crash, finds these lines
                handle.write("".join(line + "\n" for line in old))

    def add(self, values: Mapping[str, Any]) -> None:
        """One line; numbers that are none are left out, for NaN is not JSON."""
        kept = {name: value for name, value in values.items() if not (isinstance(value, float) and math.isnan(value))}
        kept = {name: value for name, value in kept.items() if value not in (math.inf, -math.inf)}
        rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in kept.items()}
        self.lines.append(rounded)
        if not self._writes:
            return
        with open(self._path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(rounded, ensure_ascii=False) + "\n")

    def values(self, name: str) -> list[Any]:
        """This number of every line that has it."""
        return [line[name] for line in self.lines if name in line]

    def copy_to(self, path: Path) -> None:
        """All lines as a file of their own."""
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self.lines), encoding="utf-8")
