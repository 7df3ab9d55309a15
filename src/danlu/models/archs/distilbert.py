"""DistilBERT (Sanh et al. 2019): BERT's blocks without types and pooler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.models.archs import Architecture
from danlu.models.archs._encoder import classes, encoder_kind, head_weights, layer_weights, masked_lm, plain_attention
from danlu.models.archs._keys import ACTIVATIONS, Keys
from danlu.models.block import LayerConfig, StackConfig
from danlu.models.feedforward import FeedForwardConfig
from danlu.models.heads.tag import TagConfig
from danlu.models.inputs.tokens import TokensConfig
from danlu.models.network import HeadConfig, ModelConfig, TowerConfig
from danlu.models.norms import NormConfig
from danlu.models.transform import TransformConfig
from danlu.models.weights import Source, rows

_LAYERS = {
    "mixer.inner.qkv": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    "mixer.inner.out": ("attention.out_lin",),
    "mixer.sum_norm": ("sa_layer_norm",),
    "feedforward.inner.up": ("ffn.lin1",),
    "feedforward.inner.down": ("ffn.lin2",),
    "feedforward.sum_norm": ("output_layer_norm",),
}
_NORM = NormConfig(kind="layer", epsilon=1e-12, bias=True)


class DistilBert(Architecture):
    """Maps DistilBERT checkpoints onto the core."""

    model_type = "distilbert"
    prefix = "distilbert."
    ignored = (r"(distilbert\.)?embeddings\.position_ids",)
    unused = (r"vocab_\w+\.(weight|bias)", r"(pre_)?classifier\.(weight|bias)")

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        keys.fixed(quantization_config=None, pruned_heads={})
        # Sinusoidal positions are stored like learnt ones; the others are of heads that are refused, or of training.
        keys.harmless("sinusoidal_pos_embds", "qa_dropout", "tie_weights_", "output_past")
        width, dropout = keys.integer("dim"), keys.number("dropout", 0.1)
        context_length = keys.integer("max_position_embeddings", 512)
        activation = keys.choice("activation", ACTIVATIONS, "gelu")
        layer = LayerConfig(
            mixer=plain_attention(width, keys.integer("n_heads"), keys.number("attention_dropout", 0.1)),
            feedforward=FeedForwardConfig(
                width=keys.integer("hidden_dim"), activation=activation, gated=False, bias=True
            ),
            mixer_dropout=0.0,
        )
        tokens = TokensConfig(
            vocabulary_size=keys.integer("vocab_size"), width=width, positions="learned",
            num_positions=context_length, norm=_NORM, dropout=dropout,
        )  # fmt: skip
        stack = StackConfig(
            width=width, layers=(layer,) * keys.integer("n_layers"), norm=_NORM, context_length=context_length,
            norm_at=("sum",), final_norm=False, dropout=dropout,
        )  # fmt: skip
        head = self._head(keys, TransformConfig(activation=activation, norm=_NORM))
        keys.done()
        return ModelConfig(tower=TowerConfig(input=tokens, stack=stack), head=head)

    def _head(self, keys: Keys, transform: TransformConfig) -> HeadConfig | None:
        kind, dropout = encoder_kind(keys), keys.number("dropout", 0.1)
        class_dropout = keys.number("seq_classif_dropout", 0.2)
        if kind == "ForMaskedLM":
            return masked_lm(keys, transform)
        keys.harmless("tie_word_embeddings")
        if kind == "ForSequenceClassification":
            return classes(keys, TransformConfig(activation="relu"), dropout=class_dropout)
        return TagConfig(labels=keys.labels(), dropout=dropout) if kind == "ForTokenClassification" else None

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """The masked-language head reads the token table."""
        names = {
            "embedding.tokens.weight": rows("distilbert.embeddings.word_embeddings.weight"),
            "embedding.positions": rows("distilbert.embeddings.position_embeddings.weight"),
            **layer_weights("embedding.norm", "distilbert.embeddings.LayerNorm"),
        }
        for number in range(config.num_layers):
            for ours, theirs in _LAYERS.items():
                their_names = (f"distilbert.transformer.layer.{number}.{name}" for name in theirs)
                names |= layer_weights(f"stack.blocks.{number}.{ours}", *their_names)
        return names | head_weights(
            config.head,
            masked=("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
            classifier=("pre_classifier", "classifier"),
        )

    def copies(self, config: ModelConfig) -> Mapping[str, str]:
        """Checkpoints may store the tied head again."""
        table = "distilbert.embeddings.word_embeddings.weight"
        return {"vocab_projector.weight": table} if config.is_tied else {}


plugin = DistilBert()
