import pytest
import torch
from torch import nn
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

from danlu.models.recurrent import GatedNorm, ShortConvolution

pytestmark = pytest.mark.usefixtures("one_thread")


def convolution(channels: int = 3, taps: int = 4) -> ShortConvolution:
    torch.manual_seed(0)
    layer = ShortConvolution(channels, taps, bias=True)
    nn.init.normal_(layer.bias)  # pyright: ignore[reportArgumentType]
    return layer


def test_it_equals_torch_s_depthwise_convolution_of_what_came_before() -> None:
    ours = convolution()
    theirs = nn.Conv1d(3, 3, 4, groups=3, padding=3)
    theirs.load_state_dict({"weight": ours.weight.detach().unsqueeze(1), "bias": ours.bias.detach()})  # pyright: ignore[reportOptionalMemberAccess]
    x = torch.randn(2, 9, 3)
    expected = nn.functional.silu(theirs(x.mT)[:, :, :9].mT)
    torch.testing.assert_close(ours(x, torch.zeros(2, 3, 3), None)[0], expected)


@pytest.mark.parametrize("cut", [1, 2, 5, 8])
def test_what_it_remembers_continues_a_row(cut: int) -> None:
    layer, x = convolution(), torch.randn(2, 9, 3)
    whole, end = layer(x, torch.zeros(2, layer.weight.shape[1] - 1, 3), None)
    first, state = layer(x[:, :cut], torch.zeros(2, 3, 3), None)
    second, state = layer(x[:, cut:], state, None)
    torch.testing.assert_close((torch.cat([first, second], dim=1), state), (whole, end))


def test_it_remembers_the_last_real_tokens_of_padded_rows() -> None:
    layer, x = convolution(), torch.randn(3, 6, 3)
    lengths = torch.tensor([6, 4, 1])
    before = torch.randn(3, 3, 3)
    _, state = layer(x, before, torch.arange(6) < lengths.unsqueeze(1))
    for row, length in enumerate(lengths.tolist()):
        _, alone = layer(x[row : row + 1, :length], before[row : row + 1], None)
        assert torch.equal(state[row : row + 1], alone)


def test_a_convolution_of_one_token_remembers_nothing() -> None:
    layer, x = convolution(taps=1), torch.randn(2, 5, 3)
    y, state = layer(x, torch.zeros(2, layer.weight.shape[1] - 1, 3), None)
    assert state.shape == (2, 0, 3)
    torch.testing.assert_close(y, nn.functional.silu(x * layer.weight.squeeze(1) + layer.bias))  # pyright: ignore[reportOperatorIssue]


def test_gates_before_and_after_the_norm_equal_transformers() -> None:
    torch.manual_seed(0)
    x, gate, weight = torch.randn(5, 12), torch.randn(5, 12), torch.randn(12)
    before, after = MambaRMSNormGated(12, 4, eps=1e-3), Qwen3NextRMSNormGated(12, eps=1e-3)
    ours_before = GatedNorm(12, 1e-3, num_groups=3, gate_first=True)
    ours_after = GatedNorm(12, 1e-3, gate_first=False)
    for norm in (before, after, ours_before, ours_after):
        norm.load_state_dict({"weight": weight})
    torch.testing.assert_close(ours_before(x, gate), before(x, gate))
    torch.testing.assert_close(ours_after(x, gate), after(x, gate))
