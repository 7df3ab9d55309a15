"""DistilBERT as its files on the hub say it."""

from typing import Any

import pytest
import torch

from danlu.core.errors import ModelError
from danlu.models.archs.distilbert import plugin as distilbert
from danlu.models.heads.classify import ClassifyConfig

SST2: dict[str, Any] = {
    "activation": "gelu", "architectures": ["DistilBertForSequenceClassification"], "attention_dropout": 0.1,
    "dim": 768, "dropout": 0.1, "finetuning_task": "sst-2", "hidden_dim": 3072,
    "id2label": {"0": "NEGATIVE", "1": "POSITIVE"}, "initializer_range": 0.02,
    "label2id": {"NEGATIVE": 0, "POSITIVE": 1}, "max_position_embeddings": 512, "model_type": "distilbert",
    "n_heads": 12, "n_layers": 6, "output_past": True, "pad_token_id": 0, "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": False, "tie_weights_": True, "vocab_size": 30522,
}  # fmt: skip


def test_the_config_of_the_sentiment_model_on_the_hub_is_read() -> None:
    config = distilbert.read_config(SST2)
    assert isinstance(config.head, ClassifyConfig)
    assert (config.head.labels, config.head.dropout) == (("NEGATIVE", "POSITIVE"), 0.2)
    layer = config.stack.layers[0]
    assert (config.stack.dropout, layer.mixer_dropout, getattr(layer.mixer, "dropout", None)) == (0.1, 0.0, 0.1)
    with torch.device("meta"):
        network = config.make()
    assert sum(weight.numel() for weight in network.parameters()) == 66_955_010  # as the hub counts it


def test_a_key_it_does_not_know_is_refused() -> None:
    with pytest.raises(ModelError, match=r"unknown key 'n_layer'\. Did you mean 'n_layers'"):
        distilbert.read_config({**SST2, "n_layer": 6})
