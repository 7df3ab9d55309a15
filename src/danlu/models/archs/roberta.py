"""RoBERTa (Liu et al. 2019): BERT's tower with positions counted from behind the padding id, and heads of its own."""

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
from danlu.models.archs._keys import Keys
from danlu.models.heads.classify import ClassifyConfig
from danlu.models.heads.lm import LMHeadConfig
from danlu.models.heads.tag import TagConfig
from danlu.models.network import HeadConfig, ModelConfig
from danlu.models.norms import NormConfig
from danlu.models.transform import TransformConfig
from danlu.models.weights import Source, rows


class Roberta(BertLike):
    """Maps RoBERTa checkpoints onto the core. As a decoder, or with relative positions, it is refused."""

    model_type = "roberta"
    prefix = "roberta."
    ignored = (r"(roberta\.)?embeddings\.(position_ids|token_type_ids)",)
    unused = (r"(roberta\.)?pooler\.dense\.(weight|bias)", r"lm_head\..+", r"classifier\..+")

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        tower = bert_tower(keys, first_position=keys.integer("pad_token_id", 1) + 1)
        head = self._head(keys, tower.stack.norm)
        keys.done()
        return ModelConfig(tower=tower, head=head)

    def _head(self, keys: Keys, norm: NormConfig) -> HeadConfig:
        transform = TransformConfig(activation="tanh")
        dropout = keys.number("classifier_dropout", keys.number("hidden_dropout_prob", 0.1))
        kind = encoder_kind(keys)
        if kind == "ForMaskedLM":
            return masked_lm(keys, TransformConfig(activation="gelu", norm=norm))
        keys.harmless("tie_word_embeddings")
        if kind == "ForSequenceClassification":
            return classes(keys, transform, dropout=dropout)
        if kind == "ForTokenClassification":
            return TagConfig(labels=keys.labels(), dropout=dropout)
        return pooled(transform)

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """The masked-language head reads the token table."""
        names = bert_weights("roberta.", config.stack, config.head)
        if isinstance(config.head, LMHeadConfig):
            names |= layer_weights("head.transform.dense", "lm_head.dense")
            names |= layer_weights("head.transform.norm", "lm_head.layer_norm")
            names["head.linear.bias"] = rows("lm_head.bias")
        if isinstance(config.head, ClassifyConfig):
            names |= layer_weights("head.transform.dense", "classifier.dense")
            names |= layer_weights("head.linear", "classifier.out_proj")
        if isinstance(config.head, TagConfig):
            names |= layer_weights("head.linear", "classifier")
        return names

    def copies(self, config: ModelConfig) -> Mapping[str, str]:
        """Checkpoints may store the tied head again."""
        if not config.is_tied:
            return {}
        tokens = "roberta.embeddings.word_embeddings.weight"
        return {"lm_head.decoder.weight": tokens, "lm_head.decoder.bias": "lm_head.bias"}


plugin = Roberta()
