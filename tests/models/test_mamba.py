import pytest
import torch
from transformers.models.mamba2.configuration_mamba2 import Mamba2Config as TheirConfig
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from danlu.core.errors import ModelError
from danlu.models.archs.mamba2 import mixer_weights
from danlu.models.mamba import Mamba2, Mamba2Config
from danlu.models.norms import NormConfig

from .recurrent_layers import RecurrentLayer, packed


class TestMamba2(RecurrentLayer):
    @pytest.fixture
    def config(self) -> Mamba2Config:
        return Mamba2Config(num_heads=4, head_width=6, state_width=5, num_groups=2, conv_width=3, chunk=4)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("changes", [{}, {"use_bias": True, "use_conv_bias": False}, {"time_step_limit": (0.02, 0.05)}])
def test_the_layer_equals_transformers(changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    numbers = {"num_heads": 4, "head_dim": 6, "state_size": 5, "n_groups": 2, "conv_kernel": 3, "chunk_size": 8}
    theirs = Mamba2Mixer(TheirConfig(hidden_size=12, **numbers, **changes), 0)  # pyright: ignore[reportArgumentType]
    for name, weight in theirs.named_parameters():
        if name in ("D", "norm.weight"):
            torch.nn.init.normal_(weight)
    config = Mamba2Config(
        num_heads=4, head_width=6, state_width=5, num_groups=2, conv_width=3, chunk=4,
        bias=theirs.use_bias, conv_bias=theirs.use_conv_bias,
        step_limit=(theirs.time_step_limit[0], theirs.time_step_limit[1]),
    )  # fmt: skip
    ours = Mamba2(config, 12, NormConfig(epsilon=theirs.layer_norm_epsilon), 0)
    state, shapes = theirs.state_dict(), ours.state_dict()
    names = {name.removeprefix("."): source for name, source in mixer_weights("", "", config).items()}
    ours.load_state_dict(
        {name: source.join(lambda x: state[x.removeprefix(".")], shapes[name].shape) for name, source in names.items()}
    )
    x = torch.randn(31, 12)
    with torch.no_grad():
        torch.testing.assert_close(packed(ours, [x])[0], theirs(x.unsqueeze(0))[0], atol=1e-5, rtol=1e-5)


def test_new_layers_begin_with_time_steps_and_decays_in_the_paper_s_range() -> None:
    torch.manual_seed(0)
    layer = Mamba2(Mamba2Config(num_heads=64, head_width=1, state_width=1), 4, NormConfig(), 0)
    steps, rates = torch.nn.functional.softplus(layer.step_bias.detach()), layer.log_rate.detach().exp()
    assert 1e-3 * 0.99 < float(steps.min()) < float(steps.max()) < 0.1 * 1.01
    assert float(rates.min()) >= 1.0
    assert float(rates.max()) <= 16.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "num_heads is 0. It must be positive"),
        ({"num_groups": 3}, "4 heads cannot be split into 3 groups"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes: dict[str, int], message: str) -> None:
    numbers = {"num_heads": 4, "head_width": 6, "state_width": 5}
    with pytest.raises(ModelError, match=message):
        Mamba2Config(**{**numbers, **changes})  # pyright: ignore[reportArgumentType]
