"""BERT (Devlin et al. 2019): masked language model, classifier, tagger, and the bare encoder with its pooler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.models.archs._encoder import (
    BertLike,
    bert_tower,
    bert_weights,
    classes,
    encoder_kind,
    layer_weights,
    masked_lm,
    pooled,
)
from danlu.models.archs._keys import ACTIVATIONS, Keys
from danlu.models.heads.classify import ClassifyConfig
from danlu.models.heads.lm import LMHeadConfig
from danlu.models.heads.tag import TagConfig
from danlu.models.network import HeadConfig, ModelConfig
from danlu.models.norms import NormConfig
from danlu.models.transform import TransformConfig
from danlu.models.weights import Source, rows


class Bert(BertLike):
    """Maps BERT checkpoints onto the core. As a decoder, or with relative positions, it is refused."""

    model_type = "bert"
    prefix = "bert."
    ignored = (r"(bert\.)?embeddings\.position_ids",)
    unused = (r"(bert\.)?pooler\.dense\.(weight|bias)", r"cls\..+", r"classifier\.(weight|bias)")

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        keys.harmless("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers")
        keys.harmless("pooler_size_per_head", "pooler_type")
        tower = bert_tower(keys)
        head = self._head(keys, tower.stack.norm)
        keys.done()
        return ModelConfig(tower=tower, head=head)

    def _head(self, keys: Keys, norm: NormConfig) -> HeadConfig:
        pooler = TransformConfig(activation="tanh")
        dropout = keys.number("classifier_dropout", keys.number("hidden_dropout_prob", 0.1))
        kind = encoder_kind(keys)
        if kind == "ForMaskedLM":
            activation = keys.choice("hidden_act", ACTIVATIONS, "gelu")
            return masked_lm(keys, TransformConfig(activation=activation, norm=norm))
        keys.harmless("tie_word_embeddings")
        if kind == "ForSequenceClassification":
            return classes(keys, pooler, dropout=dropout)
        if kind == "ForTokenClassification":
            return TagConfig(labels=keys.labels(), dropout=dropout)
        return pooled(pooler)

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """The masked-language head reads the token table."""
        names = bert_weights("bert.", config.stack, config.head)
        if isinstance(config.head, LMHeadConfig):
            names |= layer_weights("head.transform.dense", "cls.predictions.transform.dense")
            names |= layer_weights("head.transform.norm", "cls.predictions.transform.LayerNorm")
            names["head.linear.bias"] = rows("cls.predictions.bias")
        if isinstance(config.head, ClassifyConfig):
            names |= layer_weights("head.transform.dense", "bert.pooler.dense")
        if isinstance(config.head, ClassifyConfig | TagConfig):
            names |= layer_weights("head.linear", "classifier")
        return names

    def copies(self, config: ModelConfig) -> Mapping[str, str]:
        """Checkpoints may store the tied head again."""
        if not config.is_tied:
            return {}
        decoder = "cls.predictions.decoder"
        return {
            f"{decoder}.weight": "bert.embeddings.word_embeddings.weight",
            f"{decoder}.bias": "cls.predictions.bias",
        }


plugin = Bert()
