"""One family a file: how its config and weight names map onto the core, and nothing else.

The config of a model is its own config.json: a family reads it, and what danlu saves is the same dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Protocol

from torch import Tensor

from danlu.core.errors import ModelError
from danlu.models.network import ModelConfig
from danlu.models.weights import Weights


class Architecture(Protocol):
    """What a family's ``plugin`` answers. "Their" names are those of its Hugging Face checkpoints."""

    model_type: str
    """``model_type`` in config.json."""
    prefix: str = ""
    """What names begin with in checkpoints with a head, and lack in bare ones ("model.", "bert.")."""
    ignored: tuple[str, ...] = ()
    """Patterns of tensors that old checkpoints store though they follow from the config."""
    unused: tuple[str, ...] = ()
    """Patterns of tensors that a checkpoint may have for a head that is not asked for (BERT's pooler)."""
    zeros: tuple[str, ...] = ()
    """Tensors that are zero in checkpoints that lack them."""
    gguf: str | None = None
    """The family's name in GGUF files; None when it has none."""

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """config.json as a core config; a key that changes the model and is not honoured is a ModelError."""
        ...

    def fit(self, config: ModelConfig, names: Set[str]) -> ModelConfig:
        """The config for a checkpoint that has tensors of these names, where config.json leaves something open."""
        return config

    def weights(self, config: ModelConfig) -> Weights:
        """Our name → their names; shared tensors once."""
        ...

    def copies(self, config: ModelConfig) -> Mapping[str, str]:
        """Tensors that some checkpoints store twice: the second's name → the first's."""
        return {}

    def stand_ins(self, config: ModelConfig) -> Mapping[str, str]:
        """Tensors that some checkpoints lack: the missing one's name → the one read in its place."""
        return {}

    def config_from_gguf(self, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """GGUF metadata as a config.json; ``tensors`` are those of ``GGUF_FACTORS`` that the file has."""
        raise _no_gguf(self)

    def config_to_gguf(self, theirs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The inverse: metadata without the tokenizer's, and tensors of ``GGUF_FACTORS``. Raises ModelError when GGUF
        cannot say what the config says."""
        raise _no_gguf(self)

    def gguf_name(self, name: str) -> str:
        """Their tensor name → the name in GGUF files."""
        raise _no_gguf(self)

    def weight_from_gguf(self, name: str, weight: Tensor, config: ModelConfig) -> Tensor:
        """Undo what GGUF conversion did to a tensor; ``name`` is theirs."""
        return weight

    def weight_to_gguf(self, name: str, weight: Tensor, config: ModelConfig) -> Tensor:
        """What GGUF conversion does to a tensor: the inverse of ``weight_from_gguf``."""
        return weight


GGUF_FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
"""Tensors of GGUF files that say what config.json says: divisors of rotary frequencies."""


def _no_gguf(family: Architecture) -> ModelError:
    return ModelError(f"Models of the family '{family.model_type}' have no form in GGUF.", "Use a model folder.")
