"""One family a file: how its config and weight names map onto the core, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from danlu.models.config import CoreConfig


class Architecture(Protocol):
    """What a family's ``plugin`` answers. "Their" names are those of its Hugging Face checkpoints."""

    model_type: str
    """``model_type`` in config.json; also the GGUF architecture name."""

    def read_config(self, theirs: Mapping[str, Any]) -> CoreConfig:
        """config.json as core numbers; a key that changes the model and is not honoured is a ModelError."""
        ...

    def write_config(self, config: CoreConfig) -> dict[str, Any]:
        """Core numbers as a config.json that transformers reads."""
        ...

    def weight_names(self, config: CoreConfig) -> dict[str, tuple[str, ...]]:
        """Our name → their names, stacked along the first dimension in this order."""
        ...

    def config_from_gguf(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """GGUF metadata as a config.json."""
        ...

    def gguf_name(self, name: str) -> str:
        """Their tensor name → the name in GGUF files."""
        ...

    def weight_from_gguf(self, name: str, weight: Tensor, config: CoreConfig) -> Tensor:
        """Undo what GGUF conversion did to a tensor."""
        ...
