"""Exercise: multi-head attention as in the paper (Vaswani et al. 2017), proved equal to torch's own. Try to break it.

python examples/classic_attention.py
"""

import torch
from torch import nn

from danlu.models.classic import MultiHeadAttention, causal_mask


def main() -> None:
    torch.manual_seed(0)
    width, heads = 48, 6
    ours = MultiHeadAttention(width, heads).eval()
    theirs = nn.MultiheadAttention(width, heads, batch_first=True).eval()
    projections = (ours.query, ours.key, ours.value)
    theirs.in_proj_weight.data = torch.cat([part.weight.data for part in projections])
    theirs.in_proj_bias.data = torch.cat([part.bias.data for part in projections])
    theirs.out_proj.load_state_dict(ours.out.state_dict())

    def prove(what: str, query: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor | None) -> None:
        mixed, weights = ours(query, memory, memory, mask)
        hidden = None if mask is None else ~mask.expand(2, query.shape[1], -1).repeat_interleave(heads, dim=0)
        expected = theirs(query, memory, memory, attn_mask=hidden, average_attn_weights=False)
        torch.testing.assert_close((mixed, weights), expected, atol=1e-6, rtol=1e-5)
        assert torch.allclose(weights.sum(dim=-1), torch.ones(()))
        print(f"{what}: output {tuple(mixed.shape)} and weights {tuple(weights.shape)} equal torch's")

    x, memory = torch.randn(2, 5, width), torch.randn(2, 7, width)
    prove("self-attention", x, x, None)
    prove("nothing sees what follows it", x, x, causal_mask(5))
    prove("attention to another text", x, memory, None)
    prove("the second row is padded", x, memory, torch.tensor([[[True] * 7], [[True] * 4 + [False] * 3]]))


if __name__ == "__main__":
    main()
