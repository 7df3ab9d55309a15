"""int8: every linear, the embedding and the head to 8 bits, one scale a row, rounded to nearest.

Rows are output channels of a linear and tokens of the embedding; a tied head shares the embedding's rows, so nothing
is stored twice. Norms stay fp32. No calibration data is needed.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from danlu.core.errors import ModelError
from danlu.models.load import Model, tie_head
from danlu.models.quant import Int8Embedding, Int8Linear, quantize_rows


class Int8:
    """The plugin."""

    scheme = "int8"

    def apply(self, model: Model) -> dict[str, Any]:
        """Replace the layers; returns signal-to-noise ratios in dB of the weights."""
        if model.scheme is not None:
            raise ModelError(f"The model is already quantised ({model.scheme}).", "Start from plain weights.")
        decoder = model.decoder
        ratios: dict[str, float] = {}
        linears = [(n, m) for n, m in decoder.named_modules() if isinstance(m, nn.Linear)]
        for name, linear in linears:
            if name == "head" and model.config.tied_head:
                continue
            weight, scale = quantize_rows(linear.weight)
            ratios[name] = _snr_db(linear.weight, weight, scale)
            owner, _, attribute = name.rpartition(".")
            setattr(decoder.get_submodule(owner) if owner else decoder, attribute, Int8Linear(weight, scale))
        table = decoder.embedding.weight
        weight, scale = quantize_rows(table)
        ratios["embedding"] = _snr_db(table, weight, scale)
        decoder.embedding = Int8Embedding(weight, scale, table.dtype)  # pyright: ignore[reportAttributeAccessIssue]
        if model.config.tied_head:
            tie_head(decoder)
        model.scheme = self.scheme
        worst = min(ratios, key=lambda name: ratios[name])
        mean = sum(ratios.values()) / len(ratios)
        return {"layers": len(ratios), "snr_db_mean": round(mean, 2), "snr_db_worst": {worst: round(ratios[worst], 2)}}


def _snr_db(original: Tensor, weight: Tensor, scale: Tensor) -> float:
    noise = (original - weight * scale).square().sum()
    return 10.0 * math.log10(float(original.square().sum() / noise.clamp_min(1e-30)))


plugin = Int8()
