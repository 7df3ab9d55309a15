import torch
from torch import nn

from danlu.models.heads.probe import ProbeConfig
from danlu.models.norms import NormConfig


def test_each_row_is_what_torchs_attention_makes_of_it_alone() -> None:
    torch.manual_seed(0)
    norm = NormConfig(kind="layer", bias=True)
    head = ProbeConfig(num_heads=2, feedforward_width=12, activation="gelu", norm=norm, normalise=False).make(8)
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        head.probe.normal_()
        head.qkv.weight.copy_(theirs.in_proj_weight)
        head.qkv.bias.copy_(theirs.in_proj_bias.normal_())
    head.out = theirs.out_proj
    lengths, hidden = [3, 1, 5], torch.randn(9, 8)
    for row, found in zip(hidden.split(lengths), head(hidden, lengths), strict=True):
        seen = theirs(head.probe[None, None], row[None], row[None])[0][0, 0]
        expected = seen + head.down(nn.functional.gelu(head.up(head.norm(seen))))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_its_vectors_have_length_one_when_asked() -> None:
    norm = NormConfig(kind="layer", bias=True)
    head = ProbeConfig(num_heads=2, feedforward_width=12, activation="gelu", norm=norm).make(8)
    torch.testing.assert_close(head(torch.randn(4, 8), [2, 2]).norm(dim=-1), torch.ones(2))
