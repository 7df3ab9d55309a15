"""Convolutions in: an image becomes a small grid of embeddings, each of which has seen much of it.

A stem, bottlenecks of a residual net (He et al. 2016) and inverted residuals (Sandler et al. 2018) are all the same
thing: a few convolutions, each with a batch norm and an activation, and perhaps a shortcut around them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from danlu.core.errors import DataError, ModelError
from danlu.models.feedforward import ACTIVATIONS, Activation

_Stamp = tuple[tuple[int, int, torch.dtype], ...]


@dataclass(frozen=True, kw_only=True)
class ConvConfig:
    """A convolution, its batch norm and what follows."""

    channels: int
    """Channels it makes."""
    kernel: int = 3
    """Height and width of what it sees; odd."""
    stride: int = 1
    """Pixels from one place it looks at to the next."""
    dilation: int = 1
    """Pixels from one point of the kernel to the next."""
    depthwise: bool = False
    """Whether each channel is made from the one of its number alone."""
    activation: Activation | None = "relu"
    """After the norm."""


@dataclass(frozen=True, kw_only=True)
class ConvBlockConfig:
    """Convolutions in a row, with a shortcut around them or a pool behind them."""

    layers: tuple[ConvConfig, ...]
    """The convolutions."""
    shortcut: Literal["none", "identity", "projection"] = "none"
    """What is added to their output: nothing, their input, or their input through a 1×1 convolution."""
    activation: Activation | None = None
    """After the sum."""
    pool: bool = False
    """Whether a 3×3 maximum of stride 2 follows."""

    @property
    def stride(self) -> int:
        """How many times smaller its output is, pool left out."""
        stride = 1
        for layer in self.layers:
            stride *= layer.stride
        return stride


@dataclass(frozen=True, kw_only=True)
class ConvNetConfig:
    """A whole convolutional net without its head."""

    blocks: tuple[ConvBlockConfig, ...]
    """From stem to last."""
    channels: int = 3
    """Numbers a pixel has."""
    padding: Literal["centred", "same"] = "centred"
    """Zeros around images: as many on all sides, or TensorFlow's rule, which puts the odd one right and below."""
    norm_epsilon: float = 1e-5
    """Added inside the root of batch norms."""

    def __post_init__(self) -> None:
        if not self.blocks or any(layer.channels < 1 for block in self.blocks for layer in block.layers):
            raise ModelError("Model config: a convolutional net has no blocks or a layer without channels.")

    @property
    def width(self) -> int:
        """D: channels of the last block."""
        return self.blocks[-1].layers[-1].channels

    def make(self) -> ConvInput:
        """The module."""
        return ConvInput(self)


class ConvInput(nn.Module):
    """Blocks in a row; the pixels of the last grid are the embeddings."""

    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList()
        channels = config.channels
        for block in config.blocks:
            self.blocks.append(ConvBlock(config, block, channels))
            channels = block.layers[-1].channels

    def lengths(self, images: Tensor) -> list[int]:
        """How many embeddings each image of a batch becomes. images: (B, C, height, width); raises DataError when these
        are no such images."""
        if images.dim() != 4 or images.shape[1] != self.config.channels or not images.numel():
            raise DataError(
                f"Images of shape {tuple(images.shape)} do not fit the model.",
                f"Give (images, {self.config.channels}, height, width).",
            )
        height, width = images.shape[-2:]
        for block in self.config.blocks:
            for stride in (*(layer.stride for layer in block.layers), 2 if block.pool else 1):
                height, width = -(-height // stride), -(-width // stride)
        return [height * width] * images.shape[0]

    def forward(self, images: Tensor, positions: Tensor) -> Tensor:
        """images: (B, C, height, width) → (N, D), the last grids laid end to end. Positions are not used."""
        x = images.to(next(self.parameters()).dtype)
        x = x.contiguous(memory_format=torch.channels_last)  # faster on CPUs, free to lay flat
        for block in self.blocks:
            x = block(x)
        return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


class ConvBlock(nn.Module):
    """activation(layers(x) + shortcut(x)), then the pool."""

    def __init__(self, net: ConvNetConfig, config: ConvBlockConfig, channels: int) -> None:
        super().__init__()
        self.pool = config.pool
        self.adds = config.shortcut != "none"
        self.activation = None if config.activation is None else ACTIVATIONS[config.activation]
        sizes = (channels, *(layer.channels for layer in config.layers))
        self.layers = nn.Sequential(
            *(ConvLayer(net, layer, size) for layer, size in zip(config.layers, sizes, strict=False))
        )
        self.shortcut = None
        if config.shortcut == "projection":
            projection = ConvConfig(channels=sizes[-1], kernel=1, stride=config.stride, activation=None)
            self.shortcut = ConvLayer(net, projection, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, height, width) → the same, smaller by the strides."""
        change = self.layers(x)
        if self.adds:
            change = change + (x if self.shortcut is None else self.shortcut(x))
        if self.activation is not None:
            change = self.activation(change)
        return nn.functional.max_pool2d(change, 3, stride=2, padding=1) if self.pool else change


class ConvLayer(nn.Module):
    """activation(norm(convolution(x))).

    In inference the norm is a factor and a shift that do not depend on x, so they are folded into the convolution. The
    folded weights are made when first needed and again whenever a weight they were made of has changed; what is trained
    and saved are always convolution and norm.
    """

    def __init__(self, net: ConvNetConfig, config: ConvConfig, channels: int) -> None:
        super().__init__()
        self.centred = net.padding == "centred"
        self.activation = None if config.activation is None else ACTIVATIONS[config.activation]
        self.convolution = nn.Conv2d(
            channels,
            config.channels,
            config.kernel,
            stride=config.stride,
            padding=(config.kernel - 1) // 2 * config.dilation if self.centred else 0,
            dilation=config.dilation,
            groups=channels if config.depthwise else 1,
            bias=False,
        )
        self.norm = nn.BatchNorm2d(config.channels, eps=net.norm_epsilon)
        self._folded: tuple[_Stamp, Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, height, width) → the same, smaller by the stride."""
        if not self.centred:
            x = nn.functional.pad(x, self._same_padding(*x.shape[-2:]))
        if self.training or torch.is_grad_enabled():
            x = self._normed(self.convolution(x))
        else:
            weight, bias = self._fold()
            layer = self.convolution
            x = nn.functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        return x if self.activation is None else self.activation(x)

    def _normed(self, x: Tensor) -> Tensor:
        """Statistics, factor and shift stay in fp32 when x is not."""
        norm, mean = self.norm, self.norm.running_mean
        assert mean is not None
        if x.dtype == norm.weight.dtype == mean.dtype:
            return norm(x)
        return norm(x.float()).to(x.dtype)

    def _fold(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that does what convolution and norm do, made in fp32."""
        norm, convolution = self.norm, self.convolution
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        sources = (convolution.weight, norm.weight, norm.bias, mean, variance)
        stamp = tuple((t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype) for t in sources)
        if self._folded is None or self._folded[0] != stamp:
            factor = norm.weight.float() * torch.rsqrt(variance.float() + norm.eps)
            weight = convolution.weight.float() * factor.view(-1, 1, 1, 1)
            weight = weight.to(convolution.weight.dtype).contiguous(memory_format=torch.channels_last)
            bias = (norm.bias.float() - mean.float() * factor).to(weight.dtype)
            self._folded = (stamp, weight, bias)
        return self._folded[1:]

    def _same_padding(self, height: int, width: int) -> list[int]:
        """Left, right, top, bottom, so that a stride of s makes a grid ⌈size / s⌉ (TensorFlow's "SAME")."""
        convolution = self.convolution
        sides: list[int] = []
        for size, kernel, stride, dilation in zip(
            (width, height), convolution.kernel_size, convolution.stride, convolution.dilation, strict=True
        ):
            whole = max(kernel - (size % stride or stride), 0)
            sides += [whole // 2 * dilation, (whole - whole // 2) * dilation]
        return sides


plugin = ConvNetConfig
