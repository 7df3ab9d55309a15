"""What an engine is to serve: models, adapters and limits, as plain data that can be sent to another process.

Knows nothing of torch; the engine reads the files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from danlu.core.errors import ConfigError
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.request import AdapterRequest

Precision = Literal["fp32", "bf16"]
Scheme = Literal["int8", "none"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model to serve."""

    name: str
    """What clients write as ``model``."""
    path: str
    """Its folder or .gguf file."""
    precision: Precision | None = None
    """Number type of plain weights; None picks bf16 where the machine is fast at it, else fp32."""
    scheme: Scheme = "none"
    """"int8" quantises the weights while loading; files that are quantised already stay as they are."""


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """All that an engine needs to start."""

    models: tuple[ModelSpec, ...]
    """The models, the first of which a client gets that names none."""
    adapters: tuple[AdapterRequest, ...] = ()
    """Adapters to load as soon as the models stand."""
    config: EngineConfig = field(default_factory=EngineConfig)
    """Limits."""

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("There is no model to serve.", "Name at least one.")
        seen: set[str] = set()
        for name in [*(model.name for model in self.models), *(adapter.name for adapter in self.adapters)]:
            if not name:
                raise ConfigError("A model or adapter has an empty name.", "Write NAME=PATH.")
            if name in seen:
                raise ConfigError(
                    f"Two models or adapters are called '{name}'.", "Give one of them another name: NAME=PATH."
                )
            seen.add(name)
