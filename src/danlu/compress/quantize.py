"""Quantise a model folder with one of compress/methods/, and say what it saved."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from danlu.core import plugins
from danlu.core.errors import ConfigError, nearest
from danlu.models.load import load_model
from danlu.models.save import save_model
from danlu.text.chat import RenderedChat, conversation


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """How to make the model smaller."""

    method: str = "int8"
    """A file of compress/methods/."""
    calibration_rows: int = 32
    """Conversations used to see how large activations get, when the stage has data."""

    def __post_init__(self) -> None:
        if self.calibration_rows < 0:
            raise ConfigError(f"calibration_rows is {self.calibration_rows}.", "Use 0 (none) or more.")
        known = plugins.names("compress.methods")
        if self.method not in known:
            raise ConfigError(f"method is {self.method!r}.", nearest(self.method, known))


def quantize(source: Path, out: Path, config: QuantizeConfig, rows: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Write a quantised model folder; returns sizes. ``rows`` with ``messages`` serve as calibration data.

    ``size_ratio`` is of all weights, embedding and head included, to the same weights in fp32 (4 bytes a parameter,
    tied ones once).
    """
    model = load_model(source, precision="fp32", device=torch.device("cpu"))
    fp32_bytes = 4 * model.num_parameters()
    chosen = itertools.islice(rows, config.calibration_rows)
    rendered = [model.chat.render(conversation(row), add_generation_prompt=False) for row in chosen]
    limit = model.config.context_length
    calibration = [RenderedChat(row.ids[:limit], row.is_answer[:limit]) for row in rendered]
    measured = plugins.load("compress.methods", config.method).apply(model, calibration)
    size_bytes = save_model(model, out)
    return {
        "size_bytes": size_bytes,
        "fp32_bytes": fp32_bytes,
        "size_ratio": round(size_bytes / fp32_bytes, 5),
        **measured,
    }
