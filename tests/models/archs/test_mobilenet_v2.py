from typing import Any

import pytest
import torch

from danlu.core.errors import ModelError
from danlu.models.archs.mobilenet_v2 import plugin as mobilenet

WHOLE: dict[str, Any] = {"model_type": "mobilenet_v2", "id2label": {str(number): "x" for number in range(1000)}}


@pytest.mark.parametrize(("width", "parameters"), [(1.0, 3_504_872), (1.4, 6_108_776)])
def test_it_has_as_many_weights_as_published(width: float, parameters: int) -> None:
    with torch.device("meta"):
        network = mobilenet.read_config({**WHOLE, "depth_multiplier": width}).make()
    assert sum(weight.numel() for weight in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth_multiplier": -1.0}, "config.json: depth_multiplier is -1.0. It must be positive."),
        ({"hidden_act": "relu7"}, "config.json: hidden_act is 'relu7'."),
        ({"surprise": 1}, "config.json has an unknown key 'surprise'."),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as error:
        mobilenet.read_config({**WHOLE, **changes})
    assert message in str(error.value)
