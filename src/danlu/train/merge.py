"""Adapters become part of the weights they were trained on: added in fp32, rounded once, and how much was lost is said.

Knows no files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from danlu.core.errors import ModelError
from danlu.models.grouped import GroupedLinear
from danlu.models.model import Model, Precision, set_layer
from danlu.train.lora import lora_layers


@dataclass(frozen=True)
class Merged:
    """What merging did to the adapted weights."""

    largest_change: float
    """The largest difference that adapters make to a weight."""
    largest_rounding: float
    """The largest difference that the network's number type makes to a merged weight; 0 in fp32."""


@torch.no_grad()
def merge_lora(model: Model) -> Merged:
    """Add every adapter to its base in fp32, cast once and unwrap it.

    Raises ModelError when the base is quantised: 8 bits would round most of an adapter away.
    """
    layers = lora_layers(model)
    if any(not isinstance(layer.base, nn.Linear | GroupedLinear) for layer in layers.values()):
        raise ModelError(
            "The adapter is on 8-bit weights, which would round it away.",
            "Merge it into the plain model, and quantise what comes out.",
        )
    change = rounding = 0.0
    for name, layer in layers.items():
        base, delta = layer.base, layer.delta()
        assert isinstance(base, nn.Linear | GroupedLinear)
        exact = base.weight.float() + delta
        merged = exact.to(base.weight.dtype)
        change = max(change, float(delta.abs().max()))
        rounding = max(rounding, float((merged.float() - exact).abs().max()))
        base.weight = nn.Parameter(merged, requires_grad=False)
        set_layer(model.network, name, base)
    return Merged(change, rounding)


@torch.no_grad()
def round_weights(model: Model, precision: Precision) -> float:
    """Bring every weight of a network to a number type; returns the largest difference it made to one.

    Statistics of batch norms keep their digits, as they do when a model is loaded.
    """
    largest, dtype = 0.0, torch.bfloat16 if precision == "bf16" else torch.float32
    for parameter in model.network.parameters():
        rounded = parameter.to(dtype)
        largest = max(largest, float((rounded.float() - parameter.float()).abs().max()))
        parameter.data = rounded
    model.activation_dtype = dtype
    return largest
