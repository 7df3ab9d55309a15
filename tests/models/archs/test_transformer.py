"""The original Transformer equals torch's own, given the same weights."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from danlu.core.errors import ModelError
from danlu.models.archs.transformer import plugin
from danlu.models.attend import PackedAttend, row_positions
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.models.network import EncoderDecoder
from danlu.models.save import save_model

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG: dict[str, Any] = {
    "model_type": "transformer", "vocab_size": 50, "d_model": 24, "num_heads": 4, "d_ff": 40, "encoder_layers": 2,
    "decoder_layers": 3, "max_position_embeddings": 30, "decoder_start_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    network = plugin.read_config(CONFIG).make().eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.4 * torch.randn_like(weight))
    return Model(network, CONFIG, plugin, dtype=torch.float32)


def copy_attention(theirs: nn.MultiheadAttention, weights: list[Tensor], biases: list[Tensor], out: Any) -> None:
    theirs.in_proj_weight.copy_(torch.cat(weights))
    theirs.in_proj_bias.copy_(torch.cat(biases))
    theirs.out_proj.load_state_dict(out.state_dict())


@torch.no_grad()
def peer_of(network: EncoderDecoder) -> nn.Transformer:
    """torch.nn.Transformer with our weights, without the final norms that the paper does not have."""
    sizes: dict[str, Any] = {"d_model": 24, "nhead": 4, "dim_feedforward": 40, "batch_first": True}
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(**sizes), 2, enable_nested_tensor=False)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**sizes), 3)
    peer = nn.Transformer(24, 4, custom_encoder=encoder, custom_decoder=decoder, batch_first=True).eval()
    for stack, layers in ((network.encoder.stack, encoder.layers), (network.stack, decoder.layers)):
        for block, theirs in zip(stack.blocks, layers, strict=True):
            ours: Any = block
            layer: Any = theirs
            mixer = ours.mixer.inner
            copy_attention(layer.self_attn, [mixer.qkv.weight], [mixer.qkv.bias], mixer.out)
            norms = [ours.mixer.sum_norm, ours.feedforward.sum_norm]
            if ours.cross is not None:
                cross = ours.cross.inner
                weights, biases = [cross.q.weight, cross.kv.weight], [cross.q.bias, cross.kv.bias]
                copy_attention(layer.multihead_attn, weights, biases, cross.out)
                norms.insert(1, ours.cross.sum_norm)
            for number, norm in enumerate(norms, start=1):
                getattr(layer, f"norm{number}").load_state_dict(norm.state_dict())
            layer.linear1.load_state_dict(ours.feedforward.inner.up.state_dict())
            layer.linear2.load_state_dict(ours.feedforward.inner.down.state_dict())
    return peer


def embedded(table: Tensor, ids: Tensor) -> Tensor:
    """Section 3.4 and 3.5 of the paper, written out: √D · embedding + sin(p / 10000^(2i/D)), cos(…), in turn."""
    width = table.shape[1]
    places = [
        [(math.cos if i % 2 else math.sin)(p / 10_000 ** (2 * (i // 2) / width)) for i in range(width)]
        for p in range(ids.shape[1])
    ]
    return math.sqrt(width) * table[ids] + torch.tensor(places)


@torch.no_grad()
def test_it_equals_the_transformer_of_torch(model: Model) -> None:
    network = model.network
    assert isinstance(network, EncoderDecoder)
    sources, targets = torch.randint(50, (2, 9)), torch.randint(50, (2, 6))
    lengths = [9, 5]
    padding = torch.arange(9) >= torch.tensor(lengths).unsqueeze(1)
    table: Any = network.embedding.tokens.weight  # pyright: ignore[reportAttributeAccessIssue]
    hidden = peer_of(network)(
        embedded(table, sources),
        embedded(table, targets),
        src_key_padding_mask=padding,
        memory_key_padding_mask=padding,
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(6),
    )
    memory = network.encode(sources[~padding], lengths)
    ours = network(targets.flatten(), row_positions([6, 6]), PackedAttend([6, 6], memory=memory))
    torch.testing.assert_close(ours.view(2, 6, -1), hidden, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network.logits(ours).view(2, 6, -1), hidden @ table.t(), atol=1e-4, rtol=1e-4)


def test_it_is_saved_and_loaded_as_it_is(model: Model, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    again = load_model(tmp_path, precision="fp32")
    before, after = model.network.state_dict(), again.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert again.generation.start_id == 1


def test_the_papers_base_model_has_65_million_weights() -> None:
    """Table 3 of the paper rounds; the vocabulary has about 37,000 tokens (section 5.1)."""
    with torch.device("meta"):
        network = plugin.read_config({"model_type": "transformer", "vocab_size": 37_000}).make()
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(65e6, rel=0.04)


def test_a_key_it_does_not_know_is_refused() -> None:
    with pytest.raises(ModelError, match="has an unknown key 'surprise'"):
        plugin.read_config({**CONFIG, "surprise": 1})
    with pytest.raises(ModelError, match="lacks 'vocab_size'"):
        plugin.read_config({"model_type": "transformer"})
