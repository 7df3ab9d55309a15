"""Exercise: the encoder of "Attention is all you need", proved equal to torch's own, dropout off. Try to break it.

python examples/classic_encoder.py
"""

import torch
from torch import nn

from danlu.models.classic import Encoder, EncoderLayer, sinusoidal_positions


def copy(ours: EncoderLayer, theirs: nn.TransformerEncoderLayer) -> None:
    attention = ours.attention
    projections = (attention.query, attention.key, attention.value)
    theirs.self_attn.in_proj_weight.data = torch.cat([part.weight.data for part in projections])
    theirs.self_attn.in_proj_bias.data = torch.cat([part.bias.data for part in projections])
    pairs = ((attention.out, theirs.self_attn.out_proj), (ours.up, theirs.linear1), (ours.down, theirs.linear2),
             (ours.attention_norm, theirs.norm1), (ours.feedforward_norm, theirs.norm2))  # fmt: skip
    for mine, other in pairs:
        other.load_state_dict(mine.state_dict())


def main() -> None:
    torch.manual_seed(0)
    ids, width = torch.randint(100, (3, 11)), 32
    encoder = Encoder(100, width, num_layers=2, num_heads=4).eval()
    layers = [nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True).eval() for _ in range(2)]
    expected = encoder.tokens(ids) * width**0.5 + sinusoidal_positions(11, width)
    for mine, other in zip(encoder.layers, layers, strict=True):
        copy(mine, other)  # pyright: ignore[reportArgumentType]
        expected = other(expected)
    torch.testing.assert_close(encoder(ids), expected, atol=1e-5, rtol=1e-5)
    print(f"{len(layers)} layers: hidden states {tuple(expected.shape)} equal torch's")
    print(f"position 10: {', '.join(f'{value:+.3f}' for value in sinusoidal_positions(11, 7)[10])} (an odd width)")


if __name__ == "__main__":
    main()
