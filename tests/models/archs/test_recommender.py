"""A recommender equals torch's own pre-norm layers, given the same weights, and survives its folder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from danlu.core.errors import ModelError
from danlu.models.archs.recommender import plugin
from danlu.models.heads.rank import RankHead
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.models.network import Network
from danlu.models.save import save_model

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG: dict[str, Any] = {
    "model_type": "recommender", "items": [f"film {n}" for n in range(9)], "width": 8, "num_layers": 2, "num_heads": 2,
    "max_items": 6, "item_bias": True,
}  # fmt: skip


def made() -> Model:
    torch.manual_seed(0)
    network = plugin.read_config(CONFIG).make().eval().requires_grad_(False)
    for weight in network.parameters():
        weight.copy_(0.4 * torch.randn_like(weight))
    return Model(network, CONFIG, plugin, dtype=torch.float32)


def peer_hidden(network: Network, ids: list[int]) -> torch.Tensor:
    """Hidden states of one row by torch.nn.TransformerEncoderLayer, (T, D)."""
    layer = nn.TransformerEncoderLayer(8, 2, 32, activation="gelu", batch_first=True, norm_first=True)
    stack = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False).eval()
    for block, theirs in zip(network.stack.blocks, stack.layers, strict=True):
        ours: Any = block
        peer: Any = theirs
        mixer = ours.mixer.inner
        peer.self_attn.in_proj_weight.data, peer.self_attn.in_proj_bias.data = mixer.qkv.weight, mixer.qkv.bias
        peer.self_attn.out_proj.load_state_dict(mixer.out.state_dict())
        peer.linear1.load_state_dict(ours.feedforward.inner.up.state_dict())
        peer.linear2.load_state_dict(ours.feedforward.inner.down.state_dict())
        peer.norm1.load_state_dict(ours.mixer.input_norm.state_dict())
        peer.norm2.load_state_dict(ours.feedforward.input_norm.state_dict())
    assert isinstance(stack.norm, nn.LayerNorm)
    assert isinstance(network.stack.norm, nn.LayerNorm)
    stack.norm.load_state_dict(network.stack.norm.state_dict())
    tables: Any = network.embedding
    x = tables.tokens.weight[ids] * 8**0.5 + tables.positions[: len(ids)]
    return stack(x.unsqueeze(0), mask=nn.Transformer.generate_square_subsequent_mask(len(ids)))[0]


def test_scores_are_those_of_torchs_own_layers() -> None:
    model = made()
    head = model.network.head
    assert isinstance(head, RankHead)
    rows = [[0, 3, 1, 9], [0, 5]]
    scores = head(model.network.rows(torch.tensor([i for row in rows for i in row]), [4, 2]), [4, 2])
    for row, found in zip(rows, scores, strict=True):
        expected = head.linear.weight @ peer_hidden(model.network, row)[-1] + head.linear.bias
        torch.testing.assert_close(found[1:], expected[1:], rtol=1e-5, atol=1e-5)
    assert torch.isinf(scores[:, 0]).all()


def test_a_saved_recommender_is_the_same(tmp_path: Path) -> None:
    model = made()
    save_model(model, tmp_path / "m")
    again = load_model(tmp_path / "m", precision="fp32")
    assert again.theirs["items"] == CONFIG["items"]
    ours, theirs = model.network.state_dict(), again.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"items": []}, r"items is \[\]\. It must be the list of all item names"),
        ({"items": ["a", 3]}, r"items is \['a', 3\]"),
        ({"items": ["a", "b", "a"]}, r"items has a name twice"),
        ({"num_heads": 3}, r"3 heads cannot share a width of 8"),
        ({"dropuot": 0.1}, r"unknown key 'dropuot'"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        plugin.read_config({**CONFIG, **changes})
