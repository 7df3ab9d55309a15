from typing import Any

import pytest
import torch

from danlu.core.errors import ModelError
from danlu.models.archs.resnet import plugin as resnet
from danlu.models.inputs.convnet import ConvNetConfig

WHOLE: dict[str, Any] = {"model_type": "resnet", "architectures": ["ResNetForImageClassification"]}


def test_what_a_config_leaves_out_is_resnet_50() -> None:
    config = resnet.read_config(WHOLE)
    net = config.tower.input
    assert isinstance(net, ConvNetConfig)
    layers = sum(len(block.layers) for block in net.blocks)
    assert (layers + 1, config.width, config.num_layers) == (50, 2048, 0)  # 49 convolutions and one linear
    with torch.device("meta"):
        network = config.make()
    assert sum(weight.numel() for weight in network.parameters()) == 25_557_032 - 998 * 2049  # 2 classes, not 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_type": "wide"}, "config.json: layer_type is 'wide'."),
        ({"depths": [1, 2]}, "hidden_sizes [256, 512, 1024, 2048] and depths [1, 2] do not fit. Give both for each"),
        ({"architectures": ["ResNetForCausalLM"]}, "a convolutional net '…ForCausalLM' is not supported."),
        ({"surprise": 1}, "config.json has an unknown key 'surprise'."),
        ({"embedding_size": 0}, "a convolutional net has no blocks or a layer without channels"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as error:
        resnet.read_config({**WHOLE, **changes})
    assert message in str(error.value)
