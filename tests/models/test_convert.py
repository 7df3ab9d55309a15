import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from danlu.core.errors import ConfigError, ModelError
from danlu.models.convert import convert_torchvision
from danlu.models.images import ImageProcessor
from danlu.models.licence import Licence, read_licence
from danlu.models.load import load_model
from danlu.models.pair import read_images
from tests.models.resnet_peer import resnet_logits, resnet_state


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_converted_resnet_computes_what_the_paper_says(tmp_path: Path, kind: str, suffix: str) -> None:
    state, source = resnet_state(kind), tmp_path / f"resnet.{suffix}"
    torch.save(state, source) if suffix == "pth" else save_file(state, source)
    convert_torchvision(source, tmp_path / "model", ["cat", "dog", "owl"])
    network = load_model(tmp_path / "model", precision="fp32").network
    images = torch.randn(2, 3, 45, 70)
    torch.testing.assert_close(read_images(network, images), resnet_logits(state, images), atol=1e-4, rtol=1e-4)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["id2label"]["2"] == "owl"
    assert ImageProcessor.of_folder(tmp_path / "model").config.resize == 256


@pytest.mark.parametrize(
    ("change", "labels", "message"),
    [
        ({"layer1.0.conv1.weight": None}, None, "is neither a ResNet nor a MobileNetV2 of torchvision."),
        ({"surprise.weight": torch.zeros(1)}, None, "has tensors that its family lacks: surprise.weight."),
        ({}, ["cat"], "1 labels were given for 3 classes. Give one for each class, in order."),
        ({"layer1.0.conv2.weight": torch.zeros(8, 2, 3, 3)}, None, "is a wide or grouped ResNet."),
        (
            {"fc.weight": None},
            None,
            "This checkpoint has no classifier. Give one with fc.weight or classifier.1.weight.",
        ),
        (
            {"layer4.0.conv3.weight": None},
            None,
            "does not hold a whole network of torchvision: KeyError('layer4.0.conv3",
        ),
        ({"layer1.0.conv2.weight": torch.zeros(8)}, None, "whole network of torchvision: IndexError"),
        ({"layer4.0.bn1.weight": None}, None, "resnet.safetensors: tensors do not fit the config: 1 missing (resnet."),
        ({"fc.bias": torch.zeros(4)}, None, "1 of another shape (classifier.1.bias is (4,), the config says (3,))"),
    ],
)
def test_what_it_does_not_know_is_refused(tmp_path: Path, change: Any, labels: Any, message: str) -> None:
    state = {name: tensor for name, tensor in {**resnet_state("bottleneck"), **change}.items() if tensor is not None}
    save_file(state, tmp_path / "resnet.safetensors")
    with pytest.raises(ModelError) as error:
        convert_torchvision(tmp_path / "resnet.safetensors", tmp_path / "model", labels)
    assert message in str(error.value)
    assert not (tmp_path / "model").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"There is no file .*gone\.pth\. Give a \.pth or \.safetensors file\."):
        convert_torchvision(tmp_path / "gone.pth", tmp_path / "model")


def test_a_converted_model_says_its_licence(tmp_path: Path) -> None:
    save_file(resnet_state("basic"), tmp_path / "resnet.safetensors")
    convert_torchvision(tmp_path / "resnet.safetensors", tmp_path / "model", licence=Licence(identifier="bsd-3-clause"))
    assert read_licence(tmp_path / "model").title == "bsd-3-clause"


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    save_file(resnet_state("basic"), tmp_path / "resnet.safetensors")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("a")
    with pytest.raises(ConfigError, match=r"mine exists\. Give the name of a folder that is not there yet"):
        convert_torchvision(tmp_path / "resnet.safetensors", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["a"]
