import pytest
import torch
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from danlu.core.errors import ModelError
from danlu.models.archs.qwen3_next import delta_weights
from danlu.models.delta import DeltaConfig, DeltaNet
from danlu.models.norms import NormConfig

from .recurrent_layers import RecurrentLayer, packed


class TestDeltaNet(RecurrentLayer):
    @pytest.fixture
    def config(self) -> DeltaConfig:
        return DeltaConfig(num_key_heads=2, num_value_heads=6, key_width=5, value_width=4, conv_width=3, chunk=4)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("value_heads", [2, 6])
def test_the_layer_equals_transformers(value_heads: int) -> None:
    torch.manual_seed(0)
    theirs = Qwen3NextGatedDeltaNet(
        Qwen3NextConfig(
            hidden_size=12,
            linear_num_key_heads=2,
            linear_num_value_heads=value_heads,
            linear_key_head_dim=5,
            linear_value_head_dim=4,
        ),
        0,
    )
    torch.nn.init.normal_(theirs.norm.weight)
    config = DeltaConfig(num_key_heads=2, num_value_heads=value_heads, key_width=5, value_width=4, chunk=16)
    ours = DeltaNet(config, 12, NormConfig(epsilon=theirs.layer_norm_epsilon), 0)
    state, shapes = theirs.state_dict(), ours.state_dict()
    names = {name.removeprefix("."): source for name, source in delta_weights("", "", config).items()}
    ours.load_state_dict(
        {name: source.join(lambda x: state[x.removeprefix(".")], shapes[name].shape) for name, source in names.items()}
    )
    x = torch.randn(150, 12)
    with torch.no_grad():
        torch.testing.assert_close(packed(ours, [x])[0], theirs(x.unsqueeze(0))[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key_width": 0}, "key_width is 0. It must be positive"),
        ({"num_value_heads": 3}, "3 value heads cannot share 2 key heads"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes: dict[str, int], message: str) -> None:
    numbers = {"num_key_heads": 2, "num_value_heads": 4, "key_width": 5, "value_width": 4}
    with pytest.raises(ModelError, match=message):
        DeltaConfig(**{**numbers, **changes})
