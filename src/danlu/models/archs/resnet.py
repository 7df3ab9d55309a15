"""ResNet (He et al. 2016; stride in the 3×3 convolution of a bottleneck, as in all weights published since)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from danlu.core.errors import ModelError
from danlu.models.archs import Architecture
from danlu.models.archs._convnet import conv_weights, convnet_model
from danlu.models.archs._keys import ACTIVATIONS, Keys
from danlu.models.heads.classify import ClassifyConfig
from danlu.models.inputs.convnet import ConvBlockConfig, ConvConfig, ConvNetConfig
from danlu.models.network import ModelConfig
from danlu.models.weights import Source, rows


class ResNet(Architecture):
    """Maps ResNet checkpoints. torchvision's own files are converted by models/convert.py."""

    model_type = "resnet"
    prefix = "resnet."

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        keys.harmless("stage_names", "out_features", "out_indices")  # what a detector would read
        kind = keys.choice("layer_type", {"basic": "basic", "bottleneck": "bottleneck"}, "bottleneck")
        activation = keys.choice("hidden_act", ACTIVATIONS, "relu")
        early = keys.flag("downsample_in_bottleneck", False)
        first_stride = 2 if keys.flag("downsample_in_first_stage", False) else 1
        sizes, depths = keys.get("hidden_sizes", [256, 512, 1024, 2048]), keys.get("depths", [3, 4, 6, 3])
        if len(sizes) != len(depths) or not all(isinstance(n, int) and n > 0 for n in (*sizes, *depths)):
            raise ModelError(
                f"config.json: hidden_sizes {sizes} and depths {depths} do not fit.", "Give both for each stage."
            )
        channels = keys.integer("embedding_size", 64)
        stem = ConvConfig(channels=channels, kernel=7, stride=2, activation=activation)
        blocks = [ConvBlockConfig(layers=(stem,), pool=True)]
        for stage, (size, depth) in enumerate(zip(sizes, depths, strict=True)):
            for block in range(depth):
                stride = (2 if stage else first_stride) if block == 0 else 1
                layers = _basic(size, stride) if kind == "basic" else _bottleneck(size, stride, early=early)
                changes = stride != 1 or channels != size
                blocks.append(
                    ConvBlockConfig(
                        layers=layers, shortcut="projection" if changes else "identity", activation=activation
                    )
                )
                channels = size
        net = ConvNetConfig(blocks=tuple(blocks), channels=keys.integer("num_channels", 3))
        model = convnet_model(keys, net)
        keys.done()
        return model

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """Blocks are counted by stage in theirs."""
        net = config.tower.input
        assert isinstance(net, ConvNetConfig)
        names = conv_weights("embedding.blocks.0.layers.0", "resnet.embedder.embedder")
        for number, (stage, block) in enumerate(_places(net), start=1):
            wanted = net.blocks[number]
            ours, theirs = f"embedding.blocks.{number}", f"resnet.encoder.stages.{stage}.layers.{block}"
            for layer in range(len(wanted.layers)):
                names |= conv_weights(f"{ours}.layers.{layer}", f"{theirs}.layer.{layer}")
            if wanted.shortcut == "projection":
                names |= conv_weights(f"{ours}.shortcut", f"{theirs}.shortcut")
        if isinstance(config.head, ClassifyConfig):
            names |= {f"head.linear.{kind}": rows(f"classifier.1.{kind}") for kind in ("weight", "bias")}
        return names


def _places(net: ConvNetConfig) -> Iterator[tuple[int, int]]:
    """Stage, and number in it, of each block after the stem: only the first of a stage can change size."""
    stage, block = 0, 0
    for number, wanted in enumerate(net.blocks[1:]):
        if number and wanted.shortcut == "projection":
            stage, block = stage + 1, 0
        yield stage, block
        block += 1


def _basic(size: int, stride: int) -> tuple[ConvConfig, ...]:
    return ConvConfig(channels=size, stride=stride), ConvConfig(channels=size, activation=None)


def _bottleneck(size: int, stride: int, *, early: bool) -> tuple[ConvConfig, ...]:
    return (
        ConvConfig(channels=size // 4, kernel=1, stride=stride if early else 1),
        ConvConfig(channels=size // 4, stride=1 if early else stride),
        ConvConfig(channels=size, kernel=1, activation=None),
    )


plugin = ResNet()
