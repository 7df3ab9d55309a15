"""One compression method a file. Its ``plugin`` changes a loaded fp32 model in place and returns what it measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from danlu.models.model import Model
from danlu.text.chat import RenderedChat


class Method(Protocol):
    """What a method's ``plugin`` answers."""

    scheme: str
    """Written to danlu.json; the loader knows it."""

    def apply(self, model: Model, calibration: Sequence[RenderedChat]) -> dict[str, Any]:
        """Compress ``model`` (fp32, on the CPU) in place; returns measurements.

        ``calibration`` are conversations like those the model will see; empty when there are none.
        """
        ...
