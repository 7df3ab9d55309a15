"""A store in a temporary folder and a stage that counts how often it really ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from danlu.core.events import Events, Silent
from danlu.lineage.stage import Body, StageContext, run_stage
from danlu.lineage.store import Artifact, Store


class Lines(Silent):
    """A display that keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class Bench:
    """Runs one kind of stage against a store."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.display = Lines()
        self.num_calls = 0

    def make(self, text: str = "hello", *, body: Body | None = None, **changes: Any) -> tuple[Artifact, bool]:
        def write(context: StageContext) -> dict[str, Any]:
            self.num_calls += 1
            (context.output / "text.txt").write_text(text)
            return {"length": len(text)}

        arguments: dict[str, Any] = {
            "name": "text",
            "kind": "data",
            "stage": "write",
            "version": 1,
            "config": {"text": text},
            "inputs": {},
            "seed": 17,
            "body": body or write,
            "events": Events(display=self.display),
        }
        return run_stage(self.store, **{**arguments, **changes})


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "store")
