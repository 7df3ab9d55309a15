"""What encoder-decoder families after BART have in common: names of weights, and most keys of config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from danlu.core.errors import ModelError
from danlu.models.archs import Architecture
from danlu.models.archs._keys import ACTIVATIONS, Keys
from danlu.models.attention import AttentionConfig
from danlu.models.block import LayerConfig, NormPlace, StackConfig
from danlu.models.feedforward import FeedForwardConfig
from danlu.models.heads.lm import LMHeadConfig
from danlu.models.inputs.tokens import TokensConfig
from danlu.models.network import ModelConfig, TowerConfig
from danlu.models.norms import NormConfig
from danlu.models.weights import Source, rows

Positions = Literal["learned", "sinusoidal", "sinusoidal_interleaved"]
_NORMS = {"mixer": "self_attn_layer_norm", "cross": "encoder_attn_layer_norm", "feedforward": "final_layer_norm"}


class Seq2Seq(Architecture):
    """Maps BART-like checkpoints onto the core. A family says where norms stand and what positions are."""

    prefix = "model."
    zeros = ("final_logits_bias",)
    norm_at: ClassVar[tuple[NormPlace, ...]] = ("sum",)
    """Where the norms of a branch stand."""
    final_norm = False
    """Whether each stack ends with a norm."""
    embedding_norm = True
    """Whether embeddings are normed."""
    positions: ClassVar[Positions] = "learned"
    """What tells places apart."""
    position_offset = 2
    """The first token's row in the table of learnt positions."""

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        self._check(keys)
        vocabulary_size, width = keys.integer("vocab_size"), keys.integer("d_model")
        shared = keys.flag("share_encoder_decoder_embeddings", True)
        target_size = keys.integer("decoder_vocab_size", vocabulary_size)
        encoder = self._tower(keys, "encoder", vocabulary_size, width)
        decoder = self._tower(keys, "decoder", vocabulary_size if shared else target_size, width)
        tied = keys.flag("tie_word_embeddings", True)
        kind = keys.head("ForConditionalGeneration")
        head = None
        if kind in ("ForConditionalGeneration", "MTModel"):
            head = LMHeadConfig(vocabulary_size=vocabulary_size if shared else target_size, tied=tied, bias=True)
        elif kind != "Model":
            raise ModelError(
                f"config.json: a '{self.model_type}' …{kind} is not supported.",
                "Use the model that generates (ForConditionalGeneration).",
            )
        if not tied and shared:
            raise ModelError(
                "config.json: tie_word_embeddings is False.", "Only models that share their embeddings are supported."
            )
        keys.done()
        return ModelConfig(tower=decoder, encoder=encoder, head=head, shared_tokens=shared)

    def _check(self, keys: Keys) -> None:
        """Keys that have one value here, and keys that say what ``architectures`` or others already say."""
        keys.fixed(
            encoder_layerdrop=0.0, decoder_layerdrop=0.0, is_decoder=False, add_bias_logits=False,
            add_final_layer_norm=self.final_norm, normalize_before=self.norm_at == ("input",),
            normalize_embedding=self.embedding_norm, static_position_embeddings=self.positions != "learned",
        )  # fmt: skip
        keys.harmless(
            "num_hidden_layers", "init_std", "classifier_dropout", "classif_dropout", "output_past", "prefix",
            "replacing_rate", "extra_pos_embeddings", "student_decoder_layers", "student_encoder_layers",
        )  # fmt: skip

    def _tower(self, keys: Keys, name: str, vocabulary_size: int, width: int) -> TowerConfig:
        heads = keys.integer(f"{name}_attention_heads")
        is_decoder = name == "decoder"
        attention = AttentionConfig(
            num_heads=heads,
            num_kv_heads=heads,
            head_width=width // heads,
            causal=is_decoder,
            bias=True,
            out_bias=True,
            dropout=keys.number("attention_dropout", 0.0),
        )
        layer = LayerConfig(
            mixer=attention,
            cross=replace(attention, causal=False) if is_decoder else None,
            feedforward=FeedForwardConfig(
                width=keys.integer(f"{name}_ffn_dim"),
                activation=keys.choice("activation_function", ACTIVATIONS, "gelu"),
                gated=False,
                bias=True,
                dropout=keys.number("activation_dropout", 0.0),
            ),
        )
        context, dropout = keys.integer("max_position_embeddings"), keys.number("dropout", 0.1)
        norm = NormConfig(kind="layer", epsilon=1e-5, bias=True)
        stack = StackConfig(
            width=width,
            layers=(layer,) * keys.integer(f"{name}_layers"),
            norm=norm,
            context_length=context,
            norm_at=self.norm_at,
            final_norm=self.final_norm,
            dropout=dropout,
        )
        is_learned = self.positions == "learned"
        tokens = TokensConfig(
            vocabulary_size=vocabulary_size,
            width=width,
            positions=self.positions,
            num_positions=context + self.position_offset if is_learned else 0,
            position_offset=self.position_offset if is_learned else 0,
            norm=norm if self.embedding_norm else None,
            scale=math.sqrt(width) if keys.flag("scale_embedding", False) else 1.0,
            dropout=dropout,
        )
        return TowerConfig(input=tokens, stack=stack)

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """Queries, keys and values are one tensor of ours, and so are the keys and values of a memory."""
        assert config.encoder is not None
        if config.shared_tokens:
            names = {"embedding.tokens.weight": rows("model.shared.weight")}
        else:
            names = {
                "embedding.tokens.weight": rows("model.decoder.embed_tokens.weight"),
                "encoder.embedding.tokens.weight": rows("model.encoder.embed_tokens.weight"),
            }
        names |= tower_weights("encoder.", "model.encoder", config.encoder)
        names |= tower_weights("", "model.decoder", config.tower)
        if isinstance(config.head, LMHeadConfig) and config.head.bias:
            names["head.linear.bias"] = Source(("final_logits_bias",), shape=(1, config.head.vocabulary_size))
        if isinstance(config.head, LMHeadConfig) and not config.is_tied:
            names["head.linear.weight"] = rows("lm_head.weight")
        return names

    def copies(self, config: ModelConfig) -> Mapping[str, str]:
        """Checkpoints may store the token embedding once more for each tower and for the head."""
        if not config.shared_tokens:
            return {"lm_head.weight": "model.decoder.embed_tokens.weight"} if config.is_tied else {}
        names = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
        return dict.fromkeys(names, "model.shared.weight")

    def stand_ins(self, config: ModelConfig) -> Mapping[str, str]:
        """Which of the copies is stored is not always the same."""
        return {"model.shared.weight": "model.encoder.embed_tokens.weight"}


def tower_weights(prefix: str, theirs: str, config: TowerConfig) -> dict[str, Source]:
    """Names of one tower, its token embedding left out."""
    names: dict[str, Source] = {}
    tokens = config.input
    assert isinstance(tokens, TokensConfig)
    if tokens.positions == "learned":
        names[f"{prefix}embedding.positions"] = rows(f"{theirs}.embed_positions.weight")
    if tokens.norm is not None:
        names |= _pair(f"{prefix}embedding.norm", f"{theirs}.layernorm_embedding")
    if config.stack.final_norm:
        names |= _pair(f"{prefix}stack.norm", f"{theirs}.layer_norm")
    norm = f"{config.stack.norm_at[0]}_norm"
    for index, layer in enumerate(config.stack.layers):
        block, ours = f"{theirs}.layers.{index}", f"{prefix}stack.blocks.{index}"
        branches = [name for name in _NORMS if name != "cross" or layer.cross is not None]
        for branch in branches:
            names |= _pair(f"{ours}.{branch}.{norm}", f"{block}.{_NORMS[branch]}")
        attention = f"{block}.self_attn"
        names |= _pair(f"{ours}.mixer.inner.qkv", *(f"{attention}.{x}_proj" for x in "qkv"))
        names |= _pair(f"{ours}.mixer.inner.out", f"{attention}.out_proj")
        if layer.cross is not None:
            cross = f"{block}.encoder_attn"
            names |= _pair(f"{ours}.cross.inner.q", f"{cross}.q_proj")
            names |= _pair(f"{ours}.cross.inner.kv", f"{cross}.k_proj", f"{cross}.v_proj")
            names |= _pair(f"{ours}.cross.inner.out", f"{cross}.out_proj")
        names |= _pair(f"{ours}.feedforward.inner.up", f"{block}.fc1")
        names |= _pair(f"{ours}.feedforward.inner.down", f"{block}.fc2")
    return names


def _pair(ours: str, *theirs: str) -> dict[str, Source]:
    """Weight and bias of one layer."""
    return {f"{ours}.{kind}": rows(*(f"{name}.{kind}" for name in theirs)) for kind in ("weight", "bias")}
