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
from danlu.models.attention import Attention, CrossAttention
from danlu.models.block import Branch
from danlu.models.feedforward import FeedForward, GatedFeedForward
from danlu.models.heads.lm import LMHead
from danlu.models.model import Model, set_layer
from danlu.models.network import Network
from danlu.models.norms import RMSNorm
from danlu.models.quant import can_quantize, int8_layer, quantize_rows
from danlu.text.chat import RenderedChat

_STRENGTH = 0.5
"""α: how much of the difficulty moves from activations to weights."""
_BATCH_TOKENS = 2048
_READERS = {Attention: "qkv", CrossAttention: "q", GatedFeedForward: "gate_up", FeedForward: "up"}
"""The linear of each kind of layer that reads the norm before it."""


class Int8:
    """The plugin."""

    scheme = "int8"

    def apply(self, model: Model, calibration: Sequence[RenderedChat]) -> dict[str, Any]:
        """Replace the layers; returns signal-to-noise ratios in dB of the weights."""
        if model.scheme is not None:
            raise ModelError(f"The model is already quantised ({model.scheme}).", "Start from plain weights.")
        network = model.network
        columns = _smooth(network, _peaks(network, calibration)) if calibration else None
        ratios: dict[str, float] = {}
        for name, layer in [(n, m) for n, m in network.named_modules() if can_quantize(m)]:
            if name == "head.linear" and model.config.is_tied:
                continue  # reads the embedding's rows
            weight, scale = quantize_rows(layer.weight)  # pyright: ignore[reportArgumentType]
            ratios[name] = _snr_db(layer.weight, weight, scale)  # pyright: ignore[reportArgumentType]
            own = columns if name == "embedding.tokens" else None
            set_layer(network, name, int8_layer(layer, weight, scale, model.activation_dtype, own))
        network.tie()
        model.scheme = self.scheme
        worst = min(ratios, key=lambda name: ratios[name])
        return {
            "layers": len(ratios),
            "calibration_rows": len(calibration),
            "snr_db_mean": round(sum(ratios.values()) / len(ratios), 2),
            "snr_db_worst": {worst: round(ratios[worst], 2)},
        }


@torch.inference_mode()
def _peaks(network: Network, rows: Sequence[RenderedChat]) -> dict[str, Tensor]:
    """Largest absolute input of every linear, per channel, over the calibration rows: name → (D,)."""
    peaks: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            peak = inputs[0].abs().amax(dim=0)
            peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

        return see

    hooks = [m.register_forward_pre_hook(watch(n)) for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    for batch in _batches(rows):
        lengths = [len(row.ids) for row in batch]
        ids = torch.tensor([i for row in batch for i in row.ids])
        network.logits(network.rows(ids, lengths))
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
def _smooth(network: Network, peaks: dict[str, Tensor]) -> Tensor | None:
    """Move scale from activations to the weights that read them; returns what a tied embedding has to undo: (D,)."""
    for name, branch in network.named_modules():
        if not isinstance(branch, Branch):
            continue
        inner = branch.inner
        reader = _READERS.get(type(inner))
        if branch.input_norm is not None and reader is not None:
            _move(branch.input_norm, inner.get_submodule(reader), peaks[f"{name}.inner.{reader}"])
        if isinstance(inner, GatedFeedForward):
            factor = _factor(peaks[f"{name}.inner.down"], inner.down.weight)
            half = inner.gate_up.parts[0]
            inner.gate_up.weight[half:].div_(factor.unsqueeze(1))
            if inner.gate_up.bias is not None:
                inner.gate_up.bias[half:].div_(factor)
            inner.down.weight.mul_(factor)
    head, norm = network.head, network.stack.norm
    if not isinstance(head, LMHead) or head.transform is not None or norm is None:
        return None
    factor = _move(norm, head.linear, peaks["head.linear"])
    return 1.0 / factor if network.config.is_tied else None


def _move(norm: nn.Module, linear: nn.Module, peak: Tensor) -> Tensor:
    """Scale a norm's output down and the weights that read it up; returns the factor."""
    assert isinstance(linear, nn.Linear)
    factor = _factor(peak, linear.weight)
    if isinstance(norm, RMSNorm) and norm.unit_offset:
        norm.weight.add_(1.0).div_(factor).sub_(1.0)
    else:
        norm.weight.div_(factor)  # pyright: ignore[reportCallIssue]
        if isinstance(norm, nn.LayerNorm) and norm.bias is not None:
            norm.bias.div_(factor)
    linear.weight.mul_(factor)
    return factor


def _factor(peak: Tensor, weight: Tensor) -> Tensor:
    """How much to scale each input channel of a linear up in its weights: (D,), geometric mean 1."""
    factor = peak.clamp_min(1e-5) ** _STRENGTH / weight.abs().amax(dim=0).clamp_min(1e-5) ** (1.0 - _STRENGTH)
    return factor / factor.log().mean().exp()


def _snr_db(original: Tensor, weight: Tensor, scale: Tensor) -> float:
    noise = (original - weight * scale).square().sum()
    return 10.0 * math.log10(float(original.square().sum() / noise.clamp_min(1e-30)))


plugin = Int8()
