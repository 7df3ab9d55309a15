"""A model of a family from a few sizes, its weights drawn at random: what pre-training begins with.

    model = new_model(NewModelConfig(family="llama", width=256, layers=4), chat, seed=17)

Its config.json is the family's own, so what is saved loads in transformers too. Knows no training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from danlu.core.device import pick_device
from danlu.core.errors import ConfigError
from danlu.models.checkpoint import core_config, find_architecture
from danlu.models.model import Model
from danlu.text.chat import ChatFormat
from danlu.text.tokenizer import TextTokenizer
from danlu.train.initial import InitialConfig, draw_weights

Family = Literal["llama", "qwen3", "gpt2", "bert", "t5", "bart"]


@dataclass(frozen=True, kw_only=True)
class NewModelConfig:
    """The sizes of a model; what is left out follows from them."""

    family: Family = "llama"
    """llama, qwen3, gpt2 write on; bert fills in; t5, bart read a source and write a target."""
    width: int = 256
    """Size of the residual stream."""
    layers: int = 4
    """Blocks; of an encoder-decoder, in each of both."""
    heads: int = 4
    """Query heads."""
    kv_heads: int | None = None
    """Key and value heads, fewer than query heads to save memory when answering; as many if left out."""
    feedforward: int | None = None
    """Inner width of feed-forward layers; if left out 8/3 of width where gated, else four times."""
    context_length: int = 1024
    """Most tokens of a row."""
    tied: bool = True
    """Whether the head reads the token table's own weights."""
    dropout: float = 0.0
    """Share dropped in training, where the family has dropout."""
    spare_ids: int = 0
    """Ids beyond the tokenizer's: the spans objective needs 100 or so where the tokenizer has no <extra_id_0>."""
    vocabulary_multiple: int = 64
    """The vocabulary is filled up to a multiple of this, which kernels like."""
    keys: dict[str, Any] = field(default_factory=dict[str, Any])
    """More keys of the family's config.json, as they are there."""
    initial: InitialConfig = field(default_factory=InitialConfig)
    """How weights are drawn."""

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "kv_heads", "feedforward", "context_length", "vocabulary_multiple"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}.", "Use 1 or more.")
        if self.width % self.heads:
            raise ConfigError(f"{self.heads} heads cannot share a width of {self.width}.", "It must be a multiple.")
        if self.kv_heads is not None and self.family not in ("llama", "qwen3"):
            raise ConfigError(f"kv_heads is {self.kv_heads}, but {self.family} has one for each head.", "Leave it out.")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ConfigError(f"{self.heads} heads cannot share {self.kv_heads} kv_heads.", "Heads must be a multiple.")
        if not self.tied and self.family in ("bert", "bart"):
            raise ConfigError(f"tied is false, but {self.family} reads its head from the token table.", "Leave it out.")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout is {self.dropout}.", "Use 0 to below 1.")
        if self.spare_ids < 0:
            raise ConfigError(f"spare_ids is {self.spare_ids}.", "Use 0 or more.")


def new_model(config: NewModelConfig, chat: ChatFormat, seed: int) -> Model:
    """An untrained fp32 model with this tokenizer. The same config, tokenizer and seed give the same weights."""
    theirs = family_config(config, chat.tokenizer)
    architecture = find_architecture(config.family)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        network = core_config(architecture, theirs).make()
        draw_weights(network, config.initial)
    network = network.to(pick_device()).eval().requires_grad_(False)
    return Model(network, theirs, architecture, dtype=torch.float32, chat=chat)


def family_config(config: NewModelConfig, tokenizer: TextTokenizer) -> dict[str, Any]:
    """The config.json."""
    multiple = config.vocabulary_multiple
    rows = -(-(tokenizer.vocabulary_size + config.spare_ids) // multiple) * multiple
    end = min(tokenizer.end_ids, default=None)
    ids = {"bos_token_id": tokenizer.begin_id, "eos_token_id": end}
    if config.family not in ("llama", "qwen3", "gpt2"):  # transformers never trains the row of a padding token
        ids["pad_token_id"] = end if tokenizer.pad_id is None else tokenizer.pad_id
    shared = {"model_type": config.family, "vocab_size": rows, "tie_word_embeddings": config.tied}
    return {**shared, **ids, **_SIZES[config.family](config, ids), **config.keys}


def _llama(config: NewModelConfig, ids: Mapping[str, int | None]) -> dict[str, Any]:
    name = {"llama": "Llama", "qwen3": "Qwen3"}[config.family]
    return {
        "architectures": [f"{name}ForCausalLM"],
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads or config.heads,
        "head_dim": config.width // config.heads,
        "intermediate_size": config.feedforward or _gated_width(config.width),
        "max_position_embeddings": config.context_length,
        "attention_dropout": config.dropout,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
    }


def _gpt2(config: NewModelConfig, ids: Mapping[str, int | None]) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.feedforward or 4 * config.width,
        "n_positions": config.context_length,
        "activation_function": "gelu_new",
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout),
    }


def _bert(config: NewModelConfig, ids: Mapping[str, int | None]) -> dict[str, Any]:
    return {
        "architectures": ["BertForMaskedLM"],
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feedforward or 4 * config.width,
        "max_position_embeddings": config.context_length,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), config.dropout),
    }


def _t5(config: NewModelConfig, ids: Mapping[str, int | None]) -> dict[str, Any]:
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "d_model": config.width,
        "num_layers": config.layers,
        "num_decoder_layers": config.layers,
        "num_heads": config.heads,
        "d_kv": config.width // config.heads,
        "d_ff": config.feedforward or _gated_width(config.width),
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": config.dropout,
        "is_encoder_decoder": True,
        "decoder_start_token_id": ids["pad_token_id"],
    }


def _bart(config: NewModelConfig, ids: Mapping[str, int | None]) -> dict[str, Any]:
    towers = {
        f"{tower}_{key}": value
        for tower in ("encoder", "decoder")
        for key, value in {
            "layers": config.layers,
            "attention_heads": config.heads,
            "ffn_dim": config.feedforward or 4 * config.width,
        }.items()
    }
    return {
        "architectures": ["BartForConditionalGeneration"],
        "d_model": config.width,
        **towers,
        "max_position_embeddings": config.context_length,
        "activation_function": "gelu",
        **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), config.dropout),
        "is_encoder_decoder": True,
        "decoder_start_token_id": ids["eos_token_id"],
    }


def _gated_width(width: int) -> int:
    """8/3 of ``width``, which makes three matrices as large as two of four times it (Shazeer 2020)."""
    return -(-width * 8 // 3 // 64) * 64


_SIZES: Mapping[Family, Callable[[NewModelConfig, Mapping[str, int | None]], dict[str, Any]]] = {
    "llama": _llama, "qwen3": _llama, "gpt2": _gpt2, "bert": _bert, "t5": _t5, "bart": _bart,
}  # fmt: skip
