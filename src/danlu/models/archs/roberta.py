"""RoBERTa (Liu et al. 2019): BERT's tower with positions counted from behind the padding id, and heads of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.models.archs._encoder import BertLike, bert_head, bert_tower, bert_weights, head_weights
from danlu.models.archs._keys import Keys
from danlu.models.network import ModelConfig
from danlu.models.weights import Source


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
        head = bert_head(keys, tower.stack.norm, activation="gelu")
        keys.done()
        return ModelConfig(tower=tower, head=head)

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """A classifier has a pooler of its own."""
        return bert_weights("roberta.", config.stack, config.head) | head_weights(
            config.head,
            masked=("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
            classifier=("classifier.dense", "classifier.out_proj"),
        )

    def copies(self, config: ModelConfig) -> Mapping[str, str]:
        """Checkpoints may store the tied head again."""
        if not config.is_tied:
            return {}
        tokens = "roberta.embeddings.word_embeddings.weight"
        return {"lm_head.decoder.weight": tokens, "lm_head.decoder.bias": "lm_head.bias"}


plugin = Roberta()
