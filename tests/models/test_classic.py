"""The classic blocks against torch's own."""

import math

import pytest
import torch
from torch import nn

from danlu.core.errors import ModelError
from danlu.models.classic import Encoder, EncoderLayer, MultiHeadAttention, causal_mask, sinusoidal_positions

pytestmark = pytest.mark.usefixtures("one_thread")


def twins(width: int = 24, heads: int = 4, *, bias: bool = True) -> tuple[MultiHeadAttention, nn.MultiheadAttention]:
    """Ours and torch's with the same weights."""
    torch.manual_seed(0)
    ours = MultiHeadAttention(width, heads, bias=bias).eval()
    theirs = nn.MultiheadAttention(width, heads, bias=bias, batch_first=True).eval()
    parts = (ours.query, ours.key, ours.value)
    theirs.in_proj_weight.data = torch.cat([part.weight.data for part in parts])
    if bias:
        theirs.in_proj_bias.data = torch.cat([part.bias.data for part in parts])
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    return ours, theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["none", "causal", "padding"])
def test_attention_equals_torchs_with_separate_queries_keys_and_values(bias: bool, kind: str) -> None:
    ours, theirs = twins(bias=bias)
    query, key, value = torch.randn(2, 5, 24), torch.randn(2, 5, 24), torch.randn(2, 5, 24)
    real = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    mask = {"none": None, "causal": causal_mask(5), "padding": real.unsqueeze(1)}[kind]
    hidden = {"none": None, "causal": ~causal_mask(5), "padding": None}[kind]
    expected = theirs(
        query, key, value, attn_mask=hidden, key_padding_mask=~real if kind == "padding" else None,
        average_attn_weights=False,
    )  # fmt: skip
    torch.testing.assert_close(ours(query, key, value, mask), expected, atol=1e-6, rtol=1e-5)


def test_keys_and_values_left_out_are_the_queries() -> None:
    ours, _ = twins()
    x, memory = torch.randn(1, 3, 24), torch.randn(1, 6, 24)
    assert torch.equal(ours(x)[0], ours(x, x, x)[0])
    assert torch.equal(ours(x, memory)[0], ours(x, memory, memory)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_masks_without_overflow(dtype: torch.dtype) -> None:
    ours, _ = twins()
    x, mask = torch.randn(1, 4, 24) * 30, causal_mask(4)
    mixed, weights = ours.to(dtype)(x.to(dtype), mask=mask)
    assert mixed.dtype == weights.dtype == dtype
    assert bool(mixed.isfinite().all())
    assert bool((weights[0, :, ~mask] == 0).all())


def test_a_query_that_may_look_nowhere_mixes_zeros_and_has_finite_gradients() -> None:
    ours, _ = twins()
    x = torch.randn(1, 3, 24, requires_grad=True)
    mask = torch.tensor([[False, False, False], [True, True, False], [True, True, True]])
    mixed, weights = ours(x, mask=mask)
    assert bool((weights[0, :, 0] == 0).all())
    torch.testing.assert_close(mixed[0, 0], ours.out.bias)
    mixed.sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ModelError, match="A width of 30 cannot be cut into 4 heads"):
        MultiHeadAttention(30, 4)


def test_masks_of_numbers_and_of_other_shapes_are_refused() -> None:
    ours, _ = twins()
    with pytest.raises(ModelError, match=r"A mask of torch\.float32 was given"):
        ours(torch.randn(1, 3, 24), mask=torch.zeros(3, 3))
    with pytest.raises(ModelError, match=r"A mask of shape \(3, 4\) does not fit 3 keys"):
        ours(torch.randn(1, 3, 24), mask=torch.ones(3, 4, dtype=torch.bool))


@pytest.mark.parametrize("width", [1, 7, 8])
def test_positions_are_the_sines_and_cosines_of_the_paper(width: int) -> None:
    table = sinusoidal_positions(50, width)
    for place in (0, 1, 49):
        for channel in range(width):
            angle = place / 10_000 ** ((channel - channel % 2) / width)
            expected = math.cos(angle) if channel % 2 else math.sin(angle)
            assert float(table[place, channel]) == pytest.approx(expected, abs=1e-5)


def copied(ours: EncoderLayer, width: int) -> nn.TransformerEncoderLayer:
    theirs = nn.TransformerEncoderLayer(width, 4, 40, dropout=0.1, batch_first=True).eval()
    parts = (ours.attention.query, ours.attention.key, ours.attention.value)
    theirs.self_attn.in_proj_weight.data = torch.cat([part.weight.data for part in parts])
    theirs.self_attn.in_proj_bias.data = torch.cat([part.bias.data for part in parts])
    pairs = (
        (ours.attention.out, theirs.self_attn.out_proj), (ours.up, theirs.linear1), (ours.down, theirs.linear2),
        (ours.attention_norm, theirs.norm1), (ours.feedforward_norm, theirs.norm2),
    )  # fmt: skip
    for mine, other in pairs:
        nn.init.normal_(mine.weight)
        nn.init.normal_(mine.bias)
        other.load_state_dict(mine.state_dict())
    return theirs


def test_an_encoder_layer_equals_torchs() -> None:
    torch.manual_seed(0)
    ours = EncoderLayer(24, 4, 40).eval()
    theirs, x = copied(ours, 24), torch.randn(2, 6, 24)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-5)
    real = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    padded = theirs(x, src_key_padding_mask=~real)
    torch.testing.assert_close(ours(x, real.unsqueeze(1))[real], padded[real], atol=1e-4, rtol=1e-5)


def test_an_encoder_is_scaled_embeddings_and_positions_through_its_layers() -> None:
    torch.manual_seed(0)
    encoder = Encoder(50, 24, num_layers=3, num_heads=4, feedforward_width=40).eval()
    ids = torch.randint(50, (2, 6))
    x = encoder.tokens.weight[ids] * 24**0.5 + sinusoidal_positions(6, 24)
    for layer in encoder.layers:
        assert isinstance(layer, EncoderLayer)
        x = copied(layer, 24)(x)
    torch.testing.assert_close(encoder(ids), x, atol=1e-4, rtol=1e-5)


def test_dropout_works_in_training_only() -> None:
    torch.manual_seed(0)
    layer, x = EncoderLayer(24, 4, 40), torch.randn(1, 5, 24)
    assert not torch.equal(layer.train()(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))
