"""ModernBERT as its files on the hub say it, and where its windows end."""

from typing import Any

import pytest
import torch
from transformers import ModernBertConfig

from danlu.core.errors import ModelError
from danlu.models.archs.modernbert import plugin as modernbert
from danlu.models.attention import AttentionConfig
from danlu.models.heads.classify import ClassifyConfig

BASE: dict[str, Any] = {
    "architectures": ["ModernBertForMaskedLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 50281, "classifier_activation": "gelu", "classifier_bias": False, "classifier_dropout": 0.0,
    "classifier_pooling": "mean", "cls_token_id": 50281, "decoder_bias": True, "deterministic_flash_attn": False,
    "embedding_dropout": 0.0, "eos_token_id": 50282, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0,
    "gradient_checkpointing": False, "hidden_activation": "gelu", "hidden_size": 768, "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02, "intermediate_size": 1152, "layer_norm_eps": 1e-05, "local_attention": 128,
    "local_rope_theta": 10000.0, "max_position_embeddings": 8192, "mlp_bias": False, "mlp_dropout": 0.0,
    "model_type": "modernbert", "norm_bias": False, "norm_eps": 1e-05, "num_attention_heads": 12,
    "num_hidden_layers": 22, "pad_token_id": 50283, "position_embedding_type": "absolute", "sep_token_id": 50282,
    "tie_word_embeddings": True, "torch_dtype": "float32", "transformers_version": "4.47.0.dev0", "vocab_size": 50368,
}  # fmt: skip


def mixers(theirs: dict[str, Any]) -> list[AttentionConfig]:
    found = [layer.mixer for layer in modernbert.read_config(theirs).stack.layers]
    return [mixer for mixer in found if isinstance(mixer, AttentionConfig)]


def test_the_config_of_modernbert_base_is_read() -> None:
    config = modernbert.read_config(BASE)
    assert [mixer.window for mixer in mixers(BASE)] == [None if number % 3 == 0 else 65 for number in range(22)]
    bases = [mixer.rotary.base for mixer in mixers(BASE) if mixer.rotary]
    assert bases == [160_000.0 if number % 3 == 0 else 10_000.0 for number in range(22)]
    assert [layer.mixer_norm_at for layer in config.stack.layers] == [(), *[None] * 21]
    with torch.device("meta"):
        network = config.make()
    seen = {id(weight): weight.numel() for weight in network.parameters()}
    assert (
        round(sum(seen.values()) / 1e6) == 150
    )  # 149 million, the paper says (Warner et al. 2024, table 4), and a bias


def test_the_config_that_transformers_5_makes_of_it_is_the_same() -> None:
    theirs = ModernBertConfig(**{key: value for key, value in BASE.items() if key != "model_type"}).to_dict()
    assert "rope_parameters" in theirs
    assert modernbert.read_config({**theirs, "architectures": BASE["architectures"]}) == modernbert.read_config(BASE)


def test_a_token_sees_as_many_neighbours_on_each_side_as_half_the_window() -> None:
    theirs = {
        **BASE, "architectures": ["ModernBertModel"], "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 60,
        "num_hidden_layers": 2, "intermediate_size": 16, "local_attention": 6,
    }  # fmt: skip
    torch.manual_seed(0)
    network = modernbert.read_config({**theirs, "layer_types": ["sliding_attention"] * 2}).make().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ids = torch.arange(20)
    with torch.no_grad():
        before, changed = network.rows(ids, [20]), network.rows(torch.where(ids == 10, 50, ids), [20])
    moved = [place for place in range(20) if not torch.equal(before[place], changed[place])]
    assert moved == list(range(4, 17))  # three on each side in each of two layers


def test_dropouts_are_honoured() -> None:
    config = modernbert.read_config(
        {**BASE, "attention_dropout": 0.1, "mlp_dropout": 0.2, "embedding_dropout": 0.3, "classifier_dropout": 0.4,
         "architectures": ["ModernBertForSequenceClassification"]}
    )  # fmt: skip
    layer, head = config.stack.layers[1], config.head
    assert (layer.mixer_dropout, getattr(layer.mixer, "dropout", None)) == (0.1, 0.1)
    assert getattr(layer.feedforward, "dropout", None) == 0.2
    assert getattr(config.tower.input, "dropout", None) == 0.3
    assert isinstance(head, ClassifyConfig)
    assert (head.dropout, head.pooling) == (0.4, "mean")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention"] * 3}, "layer_types is ['full_attention', 'full_attention', "),
        ({"sparse_prediction": True}, "sparse_prediction is True"),
        ({"classifier_pooling": "max"}, "classifier_pooling is 'max'"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06. Only 1e-05"),
        ({"global_rope_tetha": 1.0}, "unknown key 'global_rope_tetha'. Did you mean 'global_rope_theta'?"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as error:
        modernbert.read_config({**BASE, **changes})
    assert message in str(error.value)
