"""One task a file: what to ask, what a good answer is, which metrics; each carries a version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from danlu.core.records import Prompt
from danlu.evaluate.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question with its known answer."""

    id: str
    prompt: Prompt
    reference: str
    facts: Mapping[str, Sequence[str]]
    """What the answer is to state, by kind; empty for tasks without facts."""


class Task(Protocol):
    """What a task's ``plugin`` answers."""

    name: str
    version: int
    """Raise it when prompts or scoring change: scores of other versions cannot be compared."""

    def examples(self, rows: Iterable[Mapping[str, Any]]) -> list[Example]:
        """Questions out of held-out rows; DataError when a row lacks what the task needs."""
        ...

    def metrics(self, examples: Sequence[Example]) -> dict[str, Metric]:
        """How answers are scored, by name."""
        ...
