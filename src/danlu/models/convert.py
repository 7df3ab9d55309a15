"""Checkpoints that come as a bare file of tensors, as model folders: torchvision's ResNets and MobileNetV2.

The folder that is written is that of transformers: its config, names of weights and settings of preprocessing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from danlu.core.errors import ModelError
from danlu.core.files import atomic_folder, write_json
from danlu.models.checkpoint import open_checkpoint
from danlu.models.licence import Licence, write_licence
from danlu.models.load import checked_weights
from danlu.models.pth import read_pth
from danlu.models.tensors import TensorFiles, save_tensors

_IMAGES = {
    "do_resize": True, "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip
_STEM = ("mobilenet_v2.conv_stem.first_conv", "mobilenet_v2.conv_stem.conv_3x3", "mobilenet_v2.conv_stem.reduce_1x1")
_INVERTED = {
    "0.0": "expand_1x1.convolution", "0.1": "expand_1x1.normalization",
    "1.0": "conv_3x3.convolution", "1.1": "conv_3x3.normalization",
    "2": "reduce_1x1.convolution", "3": "reduce_1x1.normalization",
}  # fmt: skip


def convert_torchvision(
    source: Path, folder: Path, labels: Sequence[str] | None = None, licence: Licence | None = None
) -> None:
    """Write ``source`` (.pth or .safetensors with torchvision's names) as a model folder that is whole or absent.

    ``labels`` are the names of its classes in order. Raises ModelError when it is no whole ResNet or MobileNetV2.
    """
    tensors = _read(source)
    if "features.0.0.weight" in tensors:
        read_config, images, rename = _mobilenet, _MOBILENET_IMAGES, _mobilenet_name
    elif "layer1.0.conv1.weight" in tensors:
        read_config, images, rename = _resnet, _RESNET_IMAGES, _resnet_name
    else:
        raise ModelError(
            f"{source} is neither a ResNet nor a MobileNetV2 of torchvision.",
            "These begin with layer1.0.conv1.weight or features.0.0.weight.",
        )
    names = {name: rename(name) for name in tensors}
    strange = sorted(name for name, new in names.items() if new is None)
    if strange:
        raise ModelError(f"{source} has tensors that its family lacks: {', '.join(strange[:6])}.")
    try:
        config = read_config(source, tensors)
    except (KeyError, IndexError) as error:  # a name that is not there, a matrix with too few sides
        raise ModelError(
            f"{source} does not hold a whole network of torchvision: {error!r}.", "Fetch or make it again."
        ) from error
    config |= {"id2label": _numbered(tensors, labels), "torch_dtype": "float32"}
    with atomic_folder(folder) as unfinished:
        renamed = {new: tensors[name] for name, new in names.items() if new is not None}
        save_tensors(renamed, unfinished / "model.safetensors")
        write_json(unfinished / "preprocessor_config.json", {**_IMAGES, **images})
        write_json(unfinished / "config.json", config)
        write_licence(licence or Licence(), unfinished)
        checked_weights(replace(open_checkpoint(unfinished), path=source))


def _numbered(tensors: Mapping[str, Tensor], labels: Sequence[str] | None) -> dict[str, str]:
    """Number of a class → its name."""
    head = next((tensors[name] for name in ("fc.weight", "classifier.1.weight") if name in tensors), None)
    if head is None:
        raise ModelError("This checkpoint has no classifier.", "Give one with fc.weight or classifier.1.weight.")
    if labels is not None and len(labels) != head.shape[0]:
        raise ModelError(
            f"{len(labels)} labels were given for {head.shape[0]} classes.", "Give one for each class, in order."
        )
    words = labels if labels is not None else [f"LABEL_{number}" for number in range(head.shape[0])]
    return {str(number): word for number, word in enumerate(words)}


def _read(source: Path) -> Mapping[str, Tensor]:
    if not source.is_file():
        raise ModelError(f"There is no file {source}.", "Give a .pth or .safetensors file.")
    if source.suffix != ".safetensors":
        return read_pth(source)
    files = TensorFiles([source])
    return {name: files.read(name) for name in files.names()}


# ResNet

_RESNET_IMAGES: dict[str, Any] = {
    "image_processor_type": "ConvNextImageProcessor",
    "size": {"shortest_edge": 224},
    "crop_pct": 0.875,
}


def _resnet(source: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    depths = [
        len({name.split(".")[1] for name in tensors if name.startswith(f"layer{stage}.")}) for stage in range(1, 5)
    ]
    last = "conv3" if "layer1.0.conv3.weight" in tensors else "conv2"
    sizes = [tensors[f"layer{stage}.0.{last}.weight"].shape[0] for stage in range(1, 5)]
    middle = tensors["layer1.0.conv2.weight"]
    if last == "conv3" and (middle.shape[0] != sizes[0] // 4 or middle.shape[1] != middle.shape[0]):
        raise ModelError(f"{source} is a wide or grouped ResNet.", "Only the plain ones are supported so far.")
    return {
        "model_type": "resnet",
        "architectures": ["ResNetForImageClassification"],
        "embedding_size": tensors["conv1.weight"].shape[0],
        "hidden_sizes": sizes,
        "depths": depths,
        "layer_type": "bottleneck" if last == "conv3" else "basic",
        "hidden_act": "relu",
        "downsample_in_bottleneck": False,
        "downsample_in_first_stage": False,
        "num_channels": tensors["conv1.weight"].shape[1],
    }


def _resnet_name(name: str) -> str | None:
    if found := re.fullmatch(r"(conv|bn)1\.(\w+)", name):
        return f"resnet.embedder.embedder.{_KINDS[found[1]]}.{found[2]}"
    if found := re.fullmatch(r"layer([1-4])\.(\d+)\.(conv|bn)([1-3])\.(\w+)", name):
        stage, block, kind, layer, last = found.groups()
        return f"{_resnet_block(stage, block)}.layer.{int(layer) - 1}.{_KINDS[kind]}.{last}"
    if found := re.fullmatch(r"layer([1-4])\.(\d+)\.downsample\.([01])\.(\w+)", name):
        stage, block, kind, last = found.groups()
        return f"{_resnet_block(stage, block)}.shortcut.{_KINDS['conv' if kind == '0' else 'bn']}.{last}"
    return f"classifier.1.{found[1]}" if (found := re.fullmatch(r"fc\.(\w+)", name)) else None


def _resnet_block(stage: str, block: str) -> str:
    return f"resnet.encoder.stages.{int(stage) - 1}.layers.{block}"


_KINDS = {"conv": "convolution", "bn": "normalization", "0": "convolution", "1": "normalization"}


# MobileNetV2

_MOBILENET_IMAGES: dict[str, Any] = {
    "image_processor_type": "MobileNetV2ImageProcessor",
    "size": {"shortest_edge": 256},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
}


def _mobilenet(_: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    first = tensors["features.0.0.weight"]
    return {
        "model_type": "mobilenet_v2",
        "architectures": ["MobileNetV2ForImageClassification"],
        "depth_multiplier": first.shape[0] / 32,
        "num_channels": first.shape[1],
        "hidden_act": "relu6",
        "tf_padding": False,
        "first_layer_is_expansion": True,
        "finegrained_output": True,
        "layer_norm_eps": 1e-5,
        "classifier_dropout_prob": 0.2,
    }


def _mobilenet_name(name: str) -> str | None:
    if found := re.fullmatch(r"classifier\.1\.(\w+)", name):
        return f"classifier.{found[1]}"
    if found := re.fullmatch(r"features\.(0|18)\.([01])\.(\w+)", name):
        layer, kind, last = found.groups()
        return f"{_STEM[0] if layer == '0' else 'mobilenet_v2.conv_1x1'}.{_KINDS[kind]}.{last}"
    if found := re.fullmatch(r"features\.1\.conv\.0\.([01])\.(\w+)", name):
        return f"{_STEM[1]}.{_KINDS[found[1]]}.{found[2]}"
    if found := re.fullmatch(r"features\.1\.conv\.([12])\.(\w+)", name):
        return f"{_STEM[2]}.{_KINDS['conv' if found[1] == '1' else 'bn']}.{found[2]}"
    if found := re.fullmatch(r"features\.(\d+)\.conv\.(0\.0|0\.1|1\.0|1\.1|2|3)\.(\w+)", name):
        block, layer, last = found.groups()
        return f"mobilenet_v2.layer.{int(block) - 2}.{_INVERTED[layer]}.{last}"
    return None
