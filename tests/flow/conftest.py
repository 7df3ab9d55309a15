"""Recipes written to a temporary folder and tiny stages that count how often they ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from danlu.core.errors import ConfigError, ResourceError
from danlu.core.events import Silent
from danlu.flow.recipe import ANY_INPUT, RecipeStage
from danlu.flow.run import RunResult, run
from danlu.lineage.stage import StageContext
from danlu.lineage.store import Store


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A nested config."""

    rank: int = 8
    """Rank."""


@dataclass(frozen=True, kw_only=True)
class WriteConfig:
    """Config of the tiny stage."""

    text: str = "x"
    """What to write."""
    steps: int = 10
    """How often,
    at most."""
    mode: Literal["fast", "slow"] = "fast"
    """How."""
    lora: Inner = Inner()
    """Nested."""
    fail: str = ""
    """Raise this."""
    tags: tuple[str, ...] = ()
    """A list."""
    sizes: dict[str, int] = field(default_factory=dict[str, int])
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps is {self.steps}.", "Use 1 or more.")


class Write(RecipeStage[WriteConfig]):
    """Writes its text and its inputs' texts into text.txt."""

    config_type = WriteConfig
    version = 1
    kind = "data"
    optional_inputs: Mapping[str, str] = {ANY_INPUT: "texts to append"}

    def __init__(self) -> None:
        self.calls: list[str] = []

    def run(self, config: WriteConfig, context: StageContext) -> dict[str, Any]:
        self.calls.append(config.text)
        if config.fail == "interrupt":
            raise KeyboardInterrupt
        if config.fail:
            raise ResourceError(config.fail, "Mend it.")
        parts = [(path / "text.txt").read_text() for path in context.inputs.values()]
        with context.events.bar("writing", config.steps) as bar:
            bar.advance(config.steps, loss=0.5)
        (context.output / "text.txt").write_text(" ".join([config.text, *parts]))
        return {"length": len(config.text)}


class Join(Write):
    """Needs the input ``rows``; ignores the seed."""

    inputs: Mapping[str, str] = {"rows": "texts to join"}
    optional_inputs: Mapping[str, str] = {"more": "more of them"}
    uses_seed = False


class Service(Write):
    """Keeps running, if it were real."""

    service = True

    def check(self, config: WriteConfig) -> None:
        if config.text == "taken":
            raise ResourceError("Port 8000 is in use.", "Choose another.")


class Lines(Silent):
    """A display that keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


RECIPE = """
name: tiny
seed: 3
stages:
  - {name: first, use: write, text: a}
  - {name: second, use: join, inputs: {rows: first}, text: b}
  - {name: third, use: write, inputs: {x: second}, text: c}
aliases: {best: third}
"""


class Kitchen:
    """Cooks recipes in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "store")
        self.plugins: dict[str, Any] = {"write": Write(), "join": Join(), "serve": Service()}
        self.display = Lines()

    def load(self, use: str) -> RecipeStage[Any]:
        return self.plugins[use]

    @property
    def calls(self) -> list[str]:
        return [text for plugin in self.plugins.values() for text in plugin.calls]

    def write(self, text: str = RECIPE) -> Path:
        path = self.folder / "tiny.yaml"
        path.write_text(text)
        return path

    def run(self, *overrides: str, text: str = RECIPE, serve: bool = False) -> RunResult:
        path = self.write(text)
        return run(path, *overrides, serve=serve, store=self.store, display=self.display, load_plugin=self.load)


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path)
