"""int8: every linear, the embedding and the head to 8 bits, one scale a row, rounded to nearest.

Rows are output channels of a linear and tokens of the embedding; a tied head shares the embedding's rows, so nothing is
stored twice. Norms stay fp32.

With calibration data, activations are smoothed first (SmoothQuant, Xiao et al. 2023, α = 0.5): channels with large
activations are scaled down where they are made (a norm, or the feed-forward's up rows) and up in the weights that read
them, which changes nothing but leaves activations that 8 bits hold better. Deviations: the attention's out linear is
left alone (it gains nothing), and a tied head is smoothed too, the embedding undoing it per column at look-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from danlu.core.errors import ModelError
from danlu.models.attention import PackedAttend, row_positions
from danlu.models.block import Block
from danlu.models.heads.lm import Decoder
from danlu.models.load import Model, set_layer, tie_head
from danlu.models.quant import Int8Embedding, Int8Linear, quantize_rows
from danlu.text.chat import RenderedChat

_STRENGTH = 0.5
"""α: how much of the difficulty moves from activations to weights."""
_BATCH_TOKENS = 2048


class Int8:
    """The plugin."""

    scheme = "int8"

    def apply(self, model: Model, calibration: Sequence[RenderedChat]) -> dict[str, Any]:
        """Replace the layers; returns signal-to-noise ratios in dB of the weights."""
        if model.scheme is not None:
            raise ModelError(f"The model is already quantised ({model.scheme}).", "Start from plain weights.")
        decoder = model.decoder
        column_scale = torch.ones(model.config.width)
        if calibration:
            column_scale = _smooth(model, _peaks(decoder, calibration))
        ratios: dict[str, float] = {}
        for name, linear in [(n, m) for n, m in decoder.named_modules() if isinstance(m, nn.Linear)]:
            if name != "head" or not model.config.tied_head:
                weight, scale = quantize_rows(linear.weight)
                ratios[name] = _snr_db(linear.weight, weight, scale)
                set_layer(decoder, name, Int8Linear(weight, scale))
        table = decoder.embedding.weight
        weight, scale = quantize_rows(table)
        ratios["embedding"] = _snr_db(table, weight, scale)
        embedding = Int8Embedding(weight, scale, column_scale, table.dtype)
        decoder.embedding = embedding  # pyright: ignore[reportAttributeAccessIssue]
        if model.config.tied_head:
            tie_head(decoder)
        model.scheme = self.scheme
        worst = min(ratios, key=lambda name: ratios[name])
        return {
            "layers": len(ratios),
            "calibration_rows": len(calibration),
            "snr_db_mean": round(sum(ratios.values()) / len(ratios), 2),
            "snr_db_worst": {worst: round(ratios[worst], 2)},
        }


@torch.inference_mode()
def _peaks(decoder: Decoder, rows: Sequence[RenderedChat]) -> dict[str, Tensor]:
    """Largest absolute input of every linear, per channel, over the calibration rows: name → (D,)."""
    peaks: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            peak = inputs[0].abs().amax(dim=0)
            peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

        return see

    hooks = [m.register_forward_pre_hook(watch(n)) for n, m in decoder.named_modules() if isinstance(m, nn.Linear)]
    for batch in _batches(rows):
        lengths = [len(row.ids) for row in batch]
        ids = torch.tensor([i for row in batch for i in row.ids])
        decoder.logits(decoder(ids, row_positions(lengths), PackedAttend(lengths)))
    for hook in hooks:
        hook.remove()
    return {name: peak.clone() for name, peak in peaks.items()}


def _batches(rows: Sequence[RenderedChat]) -> list[list[RenderedChat]]:
    """Rows in order, a new batch whenever one is full."""
    batches: list[list[RenderedChat]] = [[]]
    for row in rows:
        if batches[-1] and sum(len(r.ids) for r in batches[-1]) + len(row.ids) > _BATCH_TOKENS:
            batches.append([])
        batches[-1].append(row)
    return batches


@torch.no_grad()
def _smooth(model: Model, peaks: dict[str, Tensor]) -> Tensor:
    """Move scale from activations to the weights that read them; returns what the embedding has to undo: (D,)."""
    decoder = model.decoder
    for layer, block in enumerate(decoder.stack.blocks):
        assert isinstance(block, Block)
        stem = f"stack.blocks.{layer}"
        factor = _factor(peaks[f"{stem}.attention.qkv"], block.attention.qkv.weight)
        block.attention_norm.weight.div_(factor)
        block.attention.qkv.weight.mul_(factor)
        factor = _factor(peaks[f"{stem}.feedforward.gate_up"], block.feedforward.gate_up.weight)
        block.feedforward_norm.weight.div_(factor)
        block.feedforward.gate_up.weight.mul_(factor)
        factor = _factor(peaks[f"{stem}.feedforward.down"], block.feedforward.down.weight)
        up_rows = block.feedforward.gate_up.weight[model.config.feedforward_width :]
        up_rows.div_(factor.unsqueeze(1))
        block.feedforward.down.weight.mul_(factor)
    factor = _factor(peaks["head"], decoder.head.weight)
    decoder.stack.norm.weight.div_(factor)
    decoder.head.weight.mul_(factor)
    return 1.0 / factor if model.config.tied_head else torch.ones_like(factor)


def _factor(peak: Tensor, weight: Tensor) -> Tensor:
    """How much to scale each input channel of a linear up in its weights: (D,), geometric mean 1."""
    factor = peak.clamp_min(1e-5) ** _STRENGTH / weight.abs().amax(dim=0).clamp_min(1e-5) ** (1.0 - _STRENGTH)
    return factor / factor.log().mean().exp()


def _snr_db(original: Tensor, weight: Tensor, scale: Tensor) -> float:
    noise = (original - weight * scale).square().sum()
    return 10.0 * math.log10(float(original.square().sum() / noise.clamp_min(1e-30)))


plugin = Int8()
