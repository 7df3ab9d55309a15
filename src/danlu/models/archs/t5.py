"""T5 (Raffel et al. 2020), T5 1.1 and Flan-T5: RMSNorm first, relative positions, scores without a scale."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any, cast

from danlu.core.errors import ModelError
from danlu.models.archs import Architecture
from danlu.models.archs._keys import ACTIVATIONS, Keys
from danlu.models.attention import AttentionConfig
from danlu.models.block import InnerConfig, LayerConfig, StackConfig
from danlu.models.feedforward import Activation, FeedForwardConfig
from danlu.models.heads.lm import LMHeadConfig
from danlu.models.inputs.tokens import TokensConfig
from danlu.models.network import HeadConfig, ModelConfig, TowerConfig
from danlu.models.norms import NormConfig
from danlu.models.positions import RelativeConfig
from danlu.models.weights import Source, rows

_NO_END = 1 << 20
"""Relative positions have no last one, so the context has no end that matters."""


class T5(Architecture):
    """Maps T5 checkpoints onto the core. Families with other feed-forward layers override the two methods for them."""

    model_type = "t5"
    ignored = (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)
    is_gated = False
    """Whether the feed-forward layer is gated where config.json does not say."""

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        keys.fixed(is_decoder=False)
        keys.harmless("n_positions", "output_past", "classifier_dropout")
        kind = keys.head("ForConditionalGeneration")
        encoder = self._tower(keys, keys.integer("num_layers"), is_decoder=False)
        decoder = self._tower(keys, keys.integer("num_decoder_layers", keys.integer("num_layers")), is_decoder=True)
        head = self._head(keys)
        keys.done()
        if kind == "EncoderModel":
            return ModelConfig(tower=encoder, head=None)
        with_head = kind in ("ForConditionalGeneration", "LMHeadModel")
        if not with_head and kind != "Model":
            raise ModelError(f"config.json: a T5 '…{kind}' is not supported.", "Use ForConditionalGeneration.")
        return ModelConfig(tower=decoder, encoder=encoder, head=head if with_head else None)

    def _tower(self, keys: Keys, num_layers: int, *, is_decoder: bool) -> TowerConfig:
        width, heads = keys.integer("d_model"), keys.integer("num_heads")
        attention = AttentionConfig(
            num_heads=heads,
            num_kv_heads=heads,
            head_width=keys.integer("d_kv"),
            causal=is_decoder,
            scale=1.0,
            dropout=keys.number("dropout_rate", 0.1),
        )
        cross = replace(attention, causal=False) if is_decoder else None
        inner = self.feedforwards(keys, num_layers, is_decoder=is_decoder)
        stack = StackConfig(
            width=width,
            layers=tuple(LayerConfig(mixer=attention, cross=cross, feedforward=one) for one in inner),
            norm=NormConfig(kind="rms", epsilon=keys.number("layer_norm_epsilon", 1e-6)),
            context_length=_NO_END,
            relative=RelativeConfig(
                num_buckets=keys.integer("relative_attention_num_buckets", 32),
                max_distance=keys.integer("relative_attention_max_distance", 128),
                bidirectional=not is_decoder,
            ),
            dropout=keys.number("dropout_rate", 0.1),
        )
        tokens = TokensConfig(
            vocabulary_size=keys.integer("vocab_size"), width=width, dropout=keys.number("dropout_rate", 0.1)
        )
        return TowerConfig(input=tokens, stack=stack)

    def feedforwards(self, keys: Keys, num_layers: int, *, is_decoder: bool) -> tuple[InnerConfig, ...]:
        """The feed-forward layer of each block."""
        return (self.plain_feedforward(keys),) * num_layers

    def plain_feedforward(self, keys: Keys) -> FeedForwardConfig:
        """The dense layer that ``feed_forward_proj`` names: "relu", or "gated-gelu", which means the tanh form."""
        kinds = {name: (name, False) for name in ACTIVATIONS} | {f"gated-{name}": (name, True) for name in ACTIVATIONS}
        kinds["gated-gelu"] = ("gelu_new", True)
        name, is_gated = keys.choice("feed_forward_proj", kinds, "gated-gelu" if self.is_gated else "relu")
        keys.fixed(dense_act_fn=name, is_gated_act=is_gated)
        return FeedForwardConfig(
            width=keys.integer("d_ff"),
            activation=cast("Activation", ACTIVATIONS[name]),
            gated=is_gated,
            dropout=keys.number("dropout_rate", 0.1),
        )

    def _head(self, keys: Keys) -> HeadConfig:
        """T5 ties its head and scales what goes into it; 1.1 does neither. Configs that transformers 5 writes say
        tied for both and tell them apart by ``scale_decoder_outputs``."""
        tied = keys.flag("tie_word_embeddings", True)
        tied = keys.flag("scale_decoder_outputs", tied) and tied
        scale = keys.integer("d_model") ** -0.5 if tied else 1.0
        return LMHeadConfig(vocabulary_size=keys.integer("vocab_size"), tied=tied, scale=scale)

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """Queries, keys and values are one tensor of ours, and so are the keys and values of a memory."""
        names = {"embedding.tokens.weight": rows("shared.weight")}
        if config.encoder is None:
            return names | self._tower_weights("", "encoder", config.stack)
        names |= self._tower_weights("encoder.", "encoder", config.encoder.stack)
        names |= self._tower_weights("", "decoder", config.stack)
        if config.head is not None and not config.is_tied:
            names["head.linear.weight"] = rows("lm_head.weight")
        return names

    def _tower_weights(self, prefix: str, tower: str, stack: StackConfig) -> dict[str, Source]:
        first = f"{tower}.block.0.layer.0.SelfAttention"
        names = {
            f"{prefix}stack.relative.weight": rows(f"{first}.relative_attention_bias.weight"),
            f"{prefix}stack.norm.weight": rows(f"{tower}.final_layer_norm.weight"),
        }
        for layer, wanted in enumerate(stack.layers):
            ours, theirs = f"{prefix}stack.blocks.{layer}", f"{tower}.block.{layer}.layer"
            names[f"{ours}.mixer.inner.qkv.weight"] = rows(*(f"{theirs}.0.SelfAttention.{x}.weight" for x in "qkv"))
            names[f"{ours}.mixer.inner.out.weight"] = rows(f"{theirs}.0.SelfAttention.o.weight")
            branches = ["mixer", "feedforward"]
            if wanted.cross is not None:
                branches.insert(1, "cross")
                cross = f"{theirs}.1.EncDecAttention"
                names[f"{ours}.cross.inner.q.weight"] = rows(f"{cross}.q.weight")
                names[f"{ours}.cross.inner.kv.weight"] = rows(f"{cross}.k.weight", f"{cross}.v.weight")
                names[f"{ours}.cross.inner.out.weight"] = rows(f"{cross}.o.weight")
            for place, branch in enumerate(branches):
                names[f"{ours}.{branch}.input_norm.weight"] = rows(f"{theirs}.{place}.layer_norm.weight")
            assert wanted.feedforward is not None
            last = len(branches) - 1
            names |= self.feedforward_weights(f"{ours}.feedforward.inner", f"{theirs}.{last}", wanted.feedforward)
        return names

    def feedforward_weights(self, ours: str, theirs: str, inner: InnerConfig) -> dict[str, Source]:
        """Names of one feed-forward layer; ``theirs`` ends before ".DenseReluDense"."""
        assert isinstance(inner, FeedForwardConfig)
        dense = f"{theirs}.DenseReluDense"
        if inner.gated:
            names = {f"{ours}.gate_up.weight": rows(f"{dense}.wi_0.weight", f"{dense}.wi_1.weight")}
        else:
            names = {f"{ours}.up.weight": rows(f"{dense}.wi.weight")}
        return names | {f"{ours}.down.weight": rows(f"{dense}.wo.weight")}

    def copies(self, config: ModelConfig) -> Mapping[str, str]:
        """Checkpoints may store the token embedding once more for each tower and for a tied head."""
        names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
        return dict.fromkeys((*names, "lm_head.weight") if config.is_tied else names, "shared.weight")

    def stand_ins(self, config: ModelConfig) -> Mapping[str, str]:
        """Which of the copies is stored is not always the same."""
        return {"shared.weight": "encoder.embed_tokens.weight"}

    def fit(self, config: ModelConfig, names: Set[str]) -> ModelConfig:
        """A head of its own that is not stored is the embedding after all."""
        if isinstance(config.head, LMHeadConfig) and "lm_head.weight" not in names:
            return replace(config, head=replace(config.head, tied=True))
        return config


plugin = T5()
