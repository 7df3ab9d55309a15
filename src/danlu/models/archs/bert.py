"""BERT (Devlin et al. 2019): masked language model, classifier, tagger, and the bare encoder with its pooler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.models.archs._encoder import BertLike, bert_head, bert_tower, bert_weights, head_weights
from danlu.models.archs._keys import ACTIVATIONS, Keys
from danlu.models.network import ModelConfig
from danlu.models.weights import Source


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
        head = bert_head(keys, tower.stack.norm, activation=keys.choice("hidden_act", ACTIVATIONS, "gelu"))
        keys.done()
        return ModelConfig(tower=tower, head=head)

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """A classifier reads what the pooler makes."""
        prediction = "cls.predictions"
        return bert_weights("bert.", config.stack, config.head) | head_weights(
            config.head,
            masked=(f"{prediction}.transform.dense", f"{prediction}.transform.LayerNorm", f"{prediction}.bias"),
            classifier=("bert.pooler.dense", "classifier"),
        )

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
