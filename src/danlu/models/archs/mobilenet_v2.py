"""MobileNetV2: inverted residuals with linear bottlenecks (Sandler et al. 2018)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from danlu.core.errors import ModelError
from danlu.models.archs import Architecture
from danlu.models.archs._convnet import conv_weights, convnet_model
from danlu.models.archs._keys import ACTIVATIONS, Keys
from danlu.models.feedforward import Activation
from danlu.models.heads.classify import ClassifyConfig
from danlu.models.inputs.convnet import ConvBlockConfig, ConvConfig, ConvNetConfig
from danlu.models.network import ModelConfig
from danlu.models.weights import Source, rows

_CHANNELS = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
_STRIDES = (2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)
"""Table 2 of the paper, unrolled: channels of all blocks, strides of those after the first."""


class MobileNetV2(Architecture):
    """Maps MobileNetV2 checkpoints. torchvision's own files are converted by models/convert.py."""

    model_type = "mobilenet_v2"
    prefix = "mobilenet_v2."

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        keys.harmless("image_size", "semantic_loss_ignore_index")  # a net without positions takes any size
        width = keys.number("depth_multiplier", 1.0)
        if width <= 0:
            raise ModelError(f"config.json: depth_multiplier is {width}.", "It must be positive.")
        activation = keys.choice("hidden_act", ACTIVATIONS, "relu6")
        expansion = keys.number("expand_ratio", 6.0)
        fine = keys.flag("finegrained_output", True)
        divisor, least = keys.integer("depth_divisible_by", 8), keys.integer("min_depth", 8)

        def size(channels: float, factor: float = width) -> int:
            return _rounded(round(channels * factor), divisor, least)

        channels = [size(number) for number in _CHANNELS]
        stem = [ConvConfig(channels=size(32), stride=2, activation=activation)]
        if not keys.flag("first_layer_is_expansion", True):
            stem.append(ConvConfig(channels=size(32), kernel=1, activation=activation))
        stem += [
            ConvConfig(channels=size(32), depthwise=True, activation=activation),
            ConvConfig(channels=channels[0], kernel=1, activation=None),
        ]
        blocks = [ConvBlockConfig(layers=tuple(stem))]
        steps = _strides(keys.integer("output_stride", 32))
        for (into, out), (stride, dilation) in zip(itertools.pairwise(channels), steps, strict=True):
            inner = size(into, expansion)
            blocks.append(_inverted(inner, out, stride, dilation, activation, is_residual=stride == 1 and into == out))
        last = ConvConfig(channels=1280 if fine and width < 1.0 else size(1280), kernel=1, activation=activation)
        net = ConvNetConfig(
            blocks=(*blocks, ConvBlockConfig(layers=(last,))),
            channels=keys.integer("num_channels", 3),
            padding="same" if keys.flag("tf_padding", True) else "centred",
            norm_epsilon=keys.number("layer_norm_eps", 0.001),
        )
        model = convnet_model(keys, net, dropout=keys.number("classifier_dropout_prob", 0.8))
        keys.done()
        return model

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """The stem is one block of ours."""
        net = config.tower.input
        assert isinstance(net, ConvNetConfig)
        stem = ["first_conv", "expand_1x1", "conv_3x3", "reduce_1x1"]
        if len(net.blocks[0].layers) == 3:
            stem.remove("expand_1x1")
        names: dict[str, Source] = {}
        for layer, name in enumerate(stem):
            names |= conv_weights(f"embedding.blocks.0.layers.{layer}", f"mobilenet_v2.conv_stem.{name}")
        for block in range(1, len(net.blocks) - 1):
            for layer, name in enumerate(stem[-2:], start=1):
                names |= conv_weights(
                    f"embedding.blocks.{block}.layers.{layer}", f"mobilenet_v2.layer.{block - 1}.{name}"
                )
            names |= conv_weights(f"embedding.blocks.{block}.layers.0", f"mobilenet_v2.layer.{block - 1}.expand_1x1")
        names |= conv_weights(f"embedding.blocks.{len(net.blocks) - 1}.layers.0", "mobilenet_v2.conv_1x1")
        if isinstance(config.head, ClassifyConfig):
            names |= {f"head.linear.{kind}": rows(f"classifier.{kind}") for kind in ("weight", "bias")}
        return names


def _inverted(
    inner: int, out: int, stride: int, dilation: int, activation: Activation, *, is_residual: bool
) -> ConvBlockConfig:
    return ConvBlockConfig(
        layers=(
            ConvConfig(channels=inner, kernel=1, activation=activation),
            ConvConfig(channels=inner, stride=stride, dilation=dilation, depthwise=True, activation=activation),
            ConvConfig(channels=out, kernel=1, activation=None),
        ),
        shortcut="identity" if is_residual else "none",
    )


def _strides(coarsest: int) -> list[tuple[int, int]]:
    """Stride and dilation of each block: once the grid is ``coarsest`` times smaller than the image, kernels are spread
    instead of strides taken."""
    steps: list[tuple[int, int]] = []
    current, dilation = 2, 1
    for stride in _STRIDES:
        if current == coarsest:
            steps.append((1, dilation))
            dilation *= stride
        else:
            steps.append((stride, 1))
            current *= stride
    return steps


def _rounded(channels: int, divisor: int, least: int) -> int:
    """The nearest multiple of ``divisor``, at least ``least``, and never more than a tenth below."""
    nearest = max(least, int(channels + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * channels else nearest + divisor


plugin = MobileNetV2()
