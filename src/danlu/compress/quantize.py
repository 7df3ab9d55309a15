"""Quantise a model folder with one of compress/methods/, and say what it saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from danlu.core import plugins
from danlu.core.errors import ConfigError, nearest
from danlu.models.load import load_model, save_model


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """How to make the model smaller."""

    method: str = "int8"
    """A file of compress/methods/."""

    def __post_init__(self) -> None:
        known = plugins.names("compress.methods")
        if self.method not in known:
            raise ConfigError(f"method is {self.method!r}.", nearest(self.method, known))


def quantize(source: Path, out: Path, config: QuantizeConfig) -> dict[str, Any]:
    """Write a quantised model folder; returns sizes. ``size_ratio`` is of all weights, embedding and head included,
    to the same weights in fp32 (4 bytes a parameter, tied ones once)."""
    model = load_model(source, dtype=torch.float32, device=torch.device("cpu"))
    fp32_bytes = 4 * model.num_parameters()
    measured = plugins.load("compress.methods", config.method).apply(model)
    size_bytes = save_model(model, out)
    return {
        "size_bytes": size_bytes,
        "fp32_bytes": fp32_bytes,
        "size_ratio": round(size_bytes / fp32_bytes, 5),
        **measured,
    }
