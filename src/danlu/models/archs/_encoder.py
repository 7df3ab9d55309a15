"""What BERT and the encoders after it have in common: post-norm blocks, classes, and names of weights."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from danlu.core.errors import ModelError
from danlu.models.archs import Architecture
from danlu.models.archs._keys import ACTIVATIONS, Keys
from danlu.models.attention import AttentionConfig
from danlu.models.block import LayerConfig, StackConfig
from danlu.models.feedforward import Activation, FeedForwardConfig
from danlu.models.heads.classify import ClassifyConfig
from danlu.models.heads.embed import EmbedConfig
from danlu.models.heads.lm import LMHeadConfig
from danlu.models.heads.tag import TagConfig
from danlu.models.inputs.tokens import TokensConfig
from danlu.models.network import HeadConfig, ModelConfig, TowerConfig
from danlu.models.norms import NormConfig
from danlu.models.pooling import Pooling
from danlu.models.transform import TransformConfig
from danlu.models.weights import Source, rows

_KINDS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "Model")
_LAYERS = {
    "mixer.inner.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "mixer.inner.out": ("attention.output.dense",),
    "mixer.sum_norm": ("attention.output.LayerNorm",),
    "feedforward.inner.up": ("intermediate.dense",),
    "feedforward.inner.down": ("output.dense",),
    "feedforward.sum_norm": ("output.LayerNorm",),
}
"""Our layers of a block → theirs."""


class BertLike(Architecture):
    """What BERT and RoBERTa share beside tower and heads: the pooler of a bare encoder, which not every checkpoint
    has."""

    def fit(self, config: ModelConfig, names: Set[str]) -> ModelConfig:
        """Without the pooler where the checkpoint was written without it: the model then gives hidden states."""
        has_pooler = any(name.endswith("pooler.dense.weight") for name in names)
        return config if has_pooler or not isinstance(config.head, EmbedConfig) else replace(config, head=None)


def bert_tower(keys: Keys, *, first_position: int = 0) -> TowerConfig:
    """Tokens, positions and types, normed; blocks with norms after their sums (Devlin et al. 2019).

    ``first_position`` is the row of the first token in the table of positions.
    """
    keys.fixed(is_decoder=False, add_cross_attention=False, position_embedding_type="absolute", pruned_heads={})
    keys.fixed(quantization_config=None)
    keys.harmless("sentence_transformers", "sbert_ce_default_activation_function", "output_past")
    width, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    dropout = keys.number("hidden_dropout_prob", 0.1)
    norm = NormConfig(kind="layer", epsilon=keys.number("layer_norm_eps", 1e-12), bias=True)
    num_positions = keys.integer("max_position_embeddings", 512)
    layer = LayerConfig(
        mixer=plain_attention(width, heads, keys.number("attention_probs_dropout_prob", 0.1)),
        feedforward=FeedForwardConfig(
            width=keys.integer("intermediate_size"),
            activation=keys.choice("hidden_act", ACTIVATIONS, "gelu"),
            gated=False,
            bias=True,
        ),
    )
    tokens = TokensConfig(
        vocabulary_size=keys.integer("vocab_size"),
        width=width,
        positions="learned",
        num_positions=num_positions,
        position_offset=first_position,
        num_types=keys.integer("type_vocab_size", 2),
        norm=norm,
        dropout=dropout,
    )
    stack = StackConfig(
        width=width,
        layers=(layer,) * keys.integer("num_hidden_layers"),
        norm=norm,
        context_length=num_positions - first_position,
        norm_at=("sum",),
        final_norm=False,
        dropout=dropout,
    )
    return TowerConfig(input=tokens, stack=stack)


def bert_head(keys: Keys, norm: NormConfig, *, activation: Activation) -> HeadConfig:
    """The head that ``architectures`` names; ``activation`` is that of the masked language model."""
    pooler = TransformConfig(activation="tanh")
    dropout = keys.number("classifier_dropout", keys.number("hidden_dropout_prob", 0.1))
    kind = encoder_kind(keys)
    if kind == "ForMaskedLM":
        return masked_lm(keys, TransformConfig(activation=activation, norm=norm))
    keys.harmless("tie_word_embeddings")
    if kind == "ForSequenceClassification":
        return classes(keys, pooler, dropout=dropout)
    if kind == "ForTokenClassification":
        return TagConfig(labels=keys.labels(), dropout=dropout)
    return EmbedConfig(pooling="first", transform=pooler, normalise=False)


def plain_attention(width: int, heads: int, dropout: float) -> AttentionConfig:
    """Attention that looks everywhere, with biases."""
    if width % heads:
        raise ModelError(f"Model config: {heads} heads cannot share a width of {width}.", "It must be a multiple.")
    return AttentionConfig(
        num_heads=heads, num_kv_heads=heads, head_width=width // heads,
        causal=False, bias=True, out_bias=True, dropout=dropout,
    )  # fmt: skip


def encoder_kind(keys: Keys) -> str:
    """Which of the encoder's heads ``architectures`` names."""
    kind = keys.head("Model")
    if kind not in _KINDS:
        raise ModelError(f"config.json: an encoder '…{kind}' is not supported.", f"Known: {', '.join(_KINDS)}.")
    return kind


def masked_lm(keys: Keys, transform: TransformConfig, *, bias: bool = True) -> LMHeadConfig:
    """A logit for each token, read with the token table."""
    keys.fixed(tie_word_embeddings=True)
    return LMHeadConfig(vocabulary_size=keys.integer("vocab_size"), bias=bias, transform=transform)


def classes(
    keys: Keys, transform: TransformConfig, *, dropout: float, pooling: Pooling = "first"
) -> ClassifyConfig:  # fmt: skip
    """A logit for each label of a text; labels are independent where the config says so, or where there is one."""
    labels = keys.labels()
    return ClassifyConfig(
        labels=labels,
        pooling=pooling,
        transform=transform,
        multi_label=keys.has_independent_labels(labels),
        dropout=dropout,
    )


def bert_weights(prefix: str, stack: StackConfig, head: HeadConfig | None) -> dict[str, Source]:
    """Names of embeddings and blocks, and of the pooler where the head is one."""
    names = {
        "embedding.tokens.weight": rows(f"{prefix}embeddings.word_embeddings.weight"),
        "embedding.positions": rows(f"{prefix}embeddings.position_embeddings.weight"),
        "embedding.types": rows(f"{prefix}embeddings.token_type_embeddings.weight"),
        **layer_weights("embedding.norm", f"{prefix}embeddings.LayerNorm"),
    }
    for number in range(stack.num_layers):
        for ours, theirs in _LAYERS.items():
            their_names = (f"{prefix}encoder.layer.{number}.{name}" for name in theirs)
            names |= layer_weights(f"stack.blocks.{number}.{ours}", *their_names)
    if isinstance(head, EmbedConfig) and head.transform is not None:
        names |= layer_weights("head.transform.dense", f"{prefix}pooler.dense")
    return names


def head_weights(
    head: HeadConfig | None, *, masked: tuple[str, str, str], classifier: tuple[str, str], tagger: str = "classifier"
) -> dict[str, Source]:
    """Names of a head's weights: ``masked`` are the linear, the norm and the bias of a masked language model, which
    reads the token table; ``classifier`` are both linears of a classifier."""
    if isinstance(head, LMHeadConfig):
        dense, norm, bias = masked
        names = layer_weights("head.transform.dense", dense) | layer_weights("head.transform.norm", norm)
        return names | {"head.linear.bias": rows(bias)}
    if isinstance(head, ClassifyConfig):
        return layer_weights("head.transform.dense", classifier[0]) | layer_weights("head.linear", classifier[1])
    return layer_weights("head.linear", tagger) if isinstance(head, TagConfig) else {}


def layer_weights(ours: str, *theirs: str, bias: bool = True) -> dict[str, Source]:
    """Weight and bias of one layer of ours, which may be several of theirs."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return {f"{ours}.{kind}": rows(*(f"{name}.{kind}" for name in theirs)) for kind in kinds}
