"""What decoder families after Llama have in common: most keys of config.json, names of weights, heads, GGUF files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from danlu.core.errors import ModelError
from danlu.models.archs import Architecture
from danlu.models.archs import _gguf as words
from danlu.models.archs._keys import ACTIVATIONS, Keys
from danlu.models.archs._rope import read_rope
from danlu.models.attention import AttentionConfig
from danlu.models.block import InnerConfig, LayerConfig, MixerConfig, NormPlace, StackConfig
from danlu.models.feedforward import FeedForwardConfig
from danlu.models.heads.classify import ClassifyConfig
from danlu.models.heads.lm import LMHeadConfig
from danlu.models.heads.tag import TagConfig
from danlu.models.inputs.tokens import TokensConfig
from danlu.models.network import HeadConfig, ModelConfig, TowerConfig
from danlu.models.norms import NormConfig
from danlu.models.weights import Source, rows


class Decoder(Architecture):
    """A family whose checkpoints are named as Llama's are."""

    prefix = "model."
    ignored = (r".*rotary_emb\.inv_freq",)
    gguf_words: ClassVar[Mapping[str, str]] = words.SHARED
    """What the family's GGUF files say: key there → key of config.json."""

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """Queries, keys and values are one tensor of ours, and so are gate and up."""
        return decoder_weights(config)

    def copies(self, config: ModelConfig) -> Mapping[str, str]:
        """Tied checkpoints may store the head again."""
        return {"lm_head.weight": self.weights(config)["embedding.tokens.weight"].names[0]} if config.is_tied else {}

    def config_from_gguf(self, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Raises ModelError when a number is missing or has no place in config.json."""
        assert self.gguf is not None
        theirs = words.config_of(metadata, tensors, self.gguf, self.gguf_words)
        return {"model_type": self.model_type, **theirs}

    def config_to_gguf(self, theirs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Raises ModelError when a reader of the file would make another model of it."""
        assert self.gguf is not None
        config = self.read_config(theirs)
        metadata, tensors = words.metadata_of(config, self.gguf, self.gguf_words)
        again = {**self.config_from_gguf(metadata, tensors), "tie_word_embeddings": config.is_tied}
        if words.spelled(self.read_config(again), 0) != words.spelled(config, config.context_length):
            raise ModelError(
                "GGUF has no words for some of this model's config.", "Keep it as a folder: every tool reads that."
            )
        return metadata, tensors

    def gguf_name(self, name: str) -> str:
        """Their tensor name → the name in GGUF files."""
        assert self.gguf is not None
        return words.gguf_name(self.gguf, name)

    def weight_from_gguf(self, name: str, weight: Tensor, config: ModelConfig) -> Tensor:
        """GGUF files hold the whole factor of a norm."""
        return weight - 1.0 if config.stack.norm.unit_offset and name.endswith("norm.weight") else weight

    def weight_to_gguf(self, name: str, weight: Tensor, config: ModelConfig) -> Tensor:
        """The inverse."""
        return weight + 1.0 if config.stack.norm.unit_offset and name.endswith("norm.weight") else weight


def read_attention(keys: Keys, *, head_width: int | None = None, **changes: Any) -> AttentionConfig:
    """The attention of one kind of layer; ``changes`` are what the family has beyond Llama, ``head_width`` what it
    assumes when config.json does not say."""
    width, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    head_width = keys.integer("head_dim", width // heads if head_width is None else head_width)
    numbers: dict[str, Any] = {
        "num_heads": heads,
        "num_kv_heads": keys.integer("num_key_value_heads", heads),
        "head_width": head_width,
        "dropout": keys.number("attention_dropout", 0.0),
    }
    if "rotary" not in changes:
        numbers["rotary"] = read_rope(keys, head_width)
    return AttentionConfig(**{**numbers, **changes})


def read_layer_types(keys: Keys, default: Sequence[str]) -> list[bool]:
    """Which layers look through the window; ``default`` names the kinds of all layers."""
    kinds = keys.get("layer_types", list(default))
    known = {"sliding_attention": True, "full_attention": False}
    if len(kinds) != len(default) or not set(kinds) <= known.keys():
        raise ModelError(
            f"config.json: layer_types is {kinds!r}.", f"It must name {len(default)} layers: {' or '.join(known)}."
        )
    return [known[kind] for kind in kinds]


def read_decoder(
    keys: Keys,
    mixers: Sequence[MixerConfig],
    feedforward: InnerConfig | Sequence[InnerConfig],
    *,
    norm: NormConfig | None = None,
    norm_at: tuple[NormPlace, ...] = ("input",),
    scale: float = 1.0,
    dropout: float = 0.0,
    softcap: float | None = None,
    tied: bool = False,
    context_length: int | None = None,
) -> ModelConfig:
    """The whole model, one mixer a layer; ``feedforward`` is that of all layers, or one a layer. Every key of
    config.json must have been asked for by now or here."""
    inner = feedforward if isinstance(feedforward, Sequence) else [feedforward] * len(mixers)
    pairs = list(zip(mixers, inner, strict=True))
    kinds = {pair: LayerConfig(mixer=pair[0], feedforward=pair[1]) for pair in pairs}
    width = keys.integer("hidden_size")
    stack = StackConfig(
        width=width,
        layers=tuple(kinds[pair] for pair in pairs),
        norm=norm or NormConfig(kind="rms", epsilon=keys.number("rms_norm_eps", 1e-6)),
        context_length=keys.integer("max_position_embeddings", context_length),
        norm_at=norm_at,
        dropout=dropout,
    )
    tokens = TokensConfig(vocabulary_size=keys.integer("vocab_size"), width=width, scale=scale)
    head = decoder_head(keys, tied=tied, softcap=softcap)
    keys.done()
    return ModelConfig(tower=TowerConfig(input=tokens, stack=stack), head=head)


def read_feedforward(keys: Keys, *, key: str = "hidden_act", activation: str = "silu") -> FeedForwardConfig:
    """Gated; ``key`` is what the family calls its activation."""
    return FeedForwardConfig(
        width=keys.integer("intermediate_size"),
        activation=keys.choice(key, ACTIVATIONS, activation),
        bias=keys.flag("mlp_bias", False),
    )


def decoder_head(keys: Keys, *, tied: bool, softcap: float | None = None) -> HeadConfig | None:
    """The head that ``architectures`` names."""
    tied = keys.flag("tie_word_embeddings", tied)
    vocabulary_size = keys.integer("vocab_size")
    kind = keys.head("ForCausalLM")
    if kind in ("ForCausalLM", "LMHeadModel"):
        return LMHeadConfig(vocabulary_size=vocabulary_size, tied=tied, softcap=softcap)
    if kind == "ForSequenceClassification":
        labels = keys.labels()
        multi_label = keys.has_independent_labels(labels)
        return ClassifyConfig(labels=labels, pooling="last", bias=False, multi_label=multi_label)
    if kind == "ForTokenClassification":
        return TagConfig(labels=keys.labels(), dropout=keys.number("classifier_dropout", 0.1))
    if kind == "Model":
        return None
    raise ModelError(f"config.json: a decoder '…{kind}' is not supported.", "Use the ForCausalLM model.")


def head_weights(config: ModelConfig, score: str = "score") -> dict[str, Source]:
    """Names of the head's weights."""
    if isinstance(config.head, LMHeadConfig):
        return {} if config.is_tied else {"head.linear.weight": rows("lm_head.weight")}
    if isinstance(config.head, ClassifyConfig):
        return {"head.linear.weight": rows(f"{score}.weight")}
    if isinstance(config.head, TagConfig):
        return {"head.linear.weight": rows(f"{score}.weight"), "head.linear.bias": rows(f"{score}.bias")}
    return {}


def decoder_weights(
    config: ModelConfig,
    *,
    norms: Mapping[str, str] = {
        "mixer.input_norm": "input_layernorm", "feedforward.input_norm": "post_attention_layernorm"
    },
    fused: bool = False,
) -> dict[str, Source]:  # fmt: skip
    """Names of embedding, attention, norms, feed-forward and head. ``fused`` checkpoints keep our fused linears."""
    names = {"embedding.tokens.weight": rows("model.embed_tokens.weight")}
    for layer, wanted in enumerate(config.stack.layers):
        ours, theirs = f"stack.blocks.{layer}", f"model.layers.{layer}"
        names |= {f"{ours}.{norm}.weight": rows(f"{theirs}.{name}.weight") for norm, name in norms.items()}
        if isinstance(wanted.mixer, AttentionConfig):
            names |= attention_weights(f"{ours}.mixer.inner", f"{theirs}.self_attn", wanted.mixer, fused=fused)
        inner, mlp = f"{ours}.feedforward.inner", f"{theirs}.mlp"
        gate_up = (f"{mlp}.gate_up_proj.weight",) if fused else tuple(f"{mlp}.{x}_proj.weight" for x in ("gate", "up"))
        names |= {f"{inner}.gate_up.weight": rows(*gate_up), f"{inner}.down.weight": rows(f"{mlp}.down_proj.weight")}
        if isinstance(wanted.feedforward, FeedForwardConfig) and wanted.feedforward.bias:
            names[f"{inner}.gate_up.bias"] = rows(f"{mlp}.gate_proj.bias", f"{mlp}.up_proj.bias")
            names[f"{inner}.down.bias"] = rows(f"{mlp}.down_proj.bias")
    names["stack.norm.weight"] = rows("model.norm.weight")
    return names | head_weights(config)


def attention_weights(
    ours: str, theirs: str, config: AttentionConfig, *, fused: bool = False
) -> dict[str, Source]:  # fmt: skip
    """Names of one self-attention."""
    projections = ("qkv_proj",) if fused else ("q_proj", "k_proj", "v_proj")
    names = {
        f"{ours}.qkv.weight": rows(*(f"{theirs}.{x}.weight" for x in projections)),
        f"{ours}.out.weight": rows(f"{theirs}.o_proj.weight"),
    }
    if config.bias:
        names[f"{ours}.qkv.bias"] = rows(*(f"{theirs}.{x}.bias" for x in projections))
    if config.out_bias:
        names[f"{ours}.out.bias"] = rows(f"{theirs}.o_proj.bias")
    if config.qk_norm is not None:
        names |= {f"{ours}.{x}_norm.weight": rows(f"{theirs}.{x}_norm.weight") for x in "qk"}
    return names
