"""Encoder-decoders: config.json as the hub has it, and checkpoints that store one table under several names."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from danlu.core import plugins
from danlu.core.errors import ModelError
from danlu.models.attention import AttentionConfig
from danlu.models.defaults import GenerationDefaults
from danlu.models.feedforward import FeedForwardConfig
from danlu.models.heads.lm import LMHeadConfig
from danlu.models.load import load_model
from danlu.models.network import ModelConfig
from tests.models.cases.seq2seq import CASES

BART_LARGE_CNN: dict[str, Any] = {
    "_num_labels": 3, "activation_dropout": 0.0, "activation_function": "gelu", "add_bias_logits": False,
    "add_final_layer_norm": False, "architectures": ["BartForConditionalGeneration"], "attention_dropout": 0.0,
    "bos_token_id": 0, "classif_dropout": 0.0, "classifier_dropout": 0.0, "d_model": 1024,
    "decoder_attention_heads": 16, "decoder_ffn_dim": 4096, "decoder_layerdrop": 0.0, "decoder_layers": 12,
    "decoder_start_token_id": 2, "dropout": 0.1, "early_stopping": True, "encoder_attention_heads": 16,
    "encoder_ffn_dim": 4096, "encoder_layerdrop": 0.0, "encoder_layers": 12, "eos_token_id": 2,
    "force_bos_token_to_be_generated": True, "forced_bos_token_id": 0, "forced_eos_token_id": 2,
    "gradient_checkpointing": False, "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, "init_std": 0.02,
    "is_encoder_decoder": True, "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}, "length_penalty": 2.0,
    "max_length": 142, "max_position_embeddings": 1024, "min_length": 56, "model_type": "bart",
    "no_repeat_ngram_size": 3, "normalize_before": False, "num_beams": 4, "num_hidden_layers": 12,
    "output_past": True, "pad_token_id": 1, "prefix": " ", "replacing_rate": 0, "scale_embedding": False,
    "static_position_embeddings": False, "student_decoder_layers": None, "student_encoder_layers": None,
    "task_specific_params": {"summarization": {"num_beams": 4}}, "transformers_version": "4.7.0.dev0",
    "use_cache": True, "vocab_size": 50264,
}  # fmt: skip
OPUS_EN_DE: dict[str, Any] = {
    "_num_labels": 3, "activation_dropout": 0.0, "activation_function": "swish", "add_bias_logits": False,
    "add_final_layer_norm": False, "architectures": ["MarianMTModel"], "attention_dropout": 0.0,
    "bad_words_ids": [[58100]], "bos_token_id": 0, "classif_dropout": 0.0, "classifier_dropout": 0.0, "d_model": 512,
    "decoder_attention_heads": 8, "decoder_ffn_dim": 2048, "decoder_layerdrop": 0.0, "decoder_layers": 6,
    "decoder_start_token_id": 58100, "decoder_vocab_size": 58101, "dropout": 0.1, "encoder_attention_heads": 8,
    "encoder_ffn_dim": 2048, "encoder_layerdrop": 0.0, "encoder_layers": 6, "eos_token_id": 0,
    "forced_eos_token_id": 0, "init_std": 0.02, "is_encoder_decoder": True, "max_length": 512,
    "max_position_embeddings": 512, "model_type": "marian", "normalize_before": False, "normalize_embedding": False,
    "num_beams": 6, "num_hidden_layers": 6, "pad_token_id": 58100, "scale_embedding": True,
    "share_encoder_decoder_embeddings": True, "static_position_embeddings": True, "transformers_version": "4.22.0",
    "use_cache": True, "vocab_size": 58101,
}  # fmt: skip
MBART_CC25: dict[str, Any] = {
    **BART_LARGE_CNN, "architectures": ["MBartForConditionalGeneration"], "model_type": "mbart",
    "add_final_layer_norm": True, "normalize_before": True, "normalize_embedding": True, "scale_embedding": True,
    "vocab_size": 250027, "decoder_start_token_id": None, "max_length": 1024, "num_beams": 5,
}  # fmt: skip
T5_SMALL: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"], "d_ff": 2048, "d_kv": 64, "d_model": 512,
    "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0,
    "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512, "num_heads": 8,
    "num_layers": 6, "output_past": True, "pad_token_id": 0, "relative_attention_num_buckets": 32,
    "task_specific_params": {"summarization": {"prefix": "summarize: "}}, "vocab_size": 32128,
}  # fmt: skip
FLAN_T5_SMALL: dict[str, Any] = {
    **T5_SMALL, "d_ff": 1024, "dense_act_fn": "gelu_new", "feed_forward_proj": "gated-gelu", "is_gated_act": True,
    "num_decoder_layers": 8, "num_heads": 6, "num_layers": 8, "relative_attention_max_distance": 128,
    "tie_word_embeddings": False, "transformers_version": "4.23.1", "use_cache": True,
}  # fmt: skip
MT5_SMALL: dict[str, Any] = {
    **FLAN_T5_SMALL, "architectures": ["MT5ForConditionalGeneration"], "model_type": "mt5", "vocab_size": 250112,
    "tokenizer_class": "T5Tokenizer",
}  # fmt: skip


def read(theirs: dict[str, Any], **changes: Any) -> ModelConfig:
    return plugins.load("models.archs", theirs["model_type"]).read_config({**theirs, **changes})


def count(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in config.make().parameters())


@pytest.mark.parametrize(
    ("theirs", "weights"),
    [
        (BART_LARGE_CNN, 406.3e6),
        (OPUS_EN_DE, 73.9e6),
        (T5_SMALL, 60.5e6),
        (FLAN_T5_SMALL, 77.0e6),
        (MT5_SMALL, 300.2e6),
    ],
    ids=["bart-large-cnn", "opus-mt-en-de", "t5-small", "flan-t5-small", "mt5-small"],
)
def test_the_hubs_own_configs_give_models_of_the_published_size(theirs: dict[str, Any], weights: float) -> None:
    assert count(read(theirs)) == pytest.approx(weights, rel=0.003)


def test_norms_positions_and_scales_are_where_the_families_have_them() -> None:
    bart, mbart, marian = read(BART_LARGE_CNN), read(MBART_CC25), read(OPUS_EN_DE)
    assert (bart.stack.norm_at, mbart.stack.norm_at, marian.stack.norm_at) == (("sum",), ("input",), ("sum",))
    assert (bart.stack.final_norm, mbart.stack.final_norm) == (False, True)
    tokens: Any = mbart.tower.input
    assert (tokens.scale, tokens.position_offset, tokens.num_positions) == (math.sqrt(1024), 2, 1026)
    tokens = marian.tower.input
    assert (tokens.positions, tokens.norm) == ("sinusoidal", None)
    t5 = read(T5_SMALL)
    attention = t5.stack.layers[0].mixer
    assert isinstance(attention, AttentionConfig)
    assert isinstance(t5.head, LMHeadConfig)
    assert (attention.rule.scale, t5.head.scale, t5.head.tied) == (1.0, 512**-0.5, True)
    flan = read(FLAN_T5_SMALL)
    assert isinstance(flan.head, LMHeadConfig)
    inner = flan.stack.layers[0].feedforward
    assert isinstance(inner, FeedForwardConfig)
    assert (inner.gated, inner.activation, flan.head.scale, flan.head.tied) == (True, "gelu_tanh", 1.0, False)


def test_their_configs_say_how_to_generate() -> None:
    assert GenerationDefaults.read(OPUS_EN_DE).banned == ((58100,),)
    assert GenerationDefaults.read(MBART_CC25).start_id == 0
    assert GenerationDefaults.read(BART_LARGE_CNN).options(prompt_tokens=1, max_tokens=29).num_beams == 4


@pytest.mark.parametrize(
    ("theirs", "changes", "message"),
    [
        (BART_LARGE_CNN, {"encoder_layerdrop": 0.1}, r"encoder_layerdrop is 0\.1"),
        (BART_LARGE_CNN, {"normalize_before": True}, "normalize_before is True"),
        (BART_LARGE_CNN, {"tie_word_embeddings": False}, "Only models that share their embeddings"),
        (BART_LARGE_CNN, {"architectures": ["BartForSequenceClassification"]}, "…ForSequenceClassification is not"),
        (OPUS_EN_DE, {"static_position_embeddings": False}, "static_position_embeddings is False"),
        (T5_SMALL, {"feed_forward_proj": "gated-gold"}, "feed_forward_proj is 'gated-gold'"),
        (T5_SMALL, {"is_gated_act": True}, "is_gated_act is True"),
        (T5_SMALL, {"is_decoder": True}, "is_decoder is True"),
        (T5_SMALL, {"architectures": ["T5ForSequenceClassification"]}, "…ForSequenceClassification' is not supported"),
    ],
)
def test_what_is_not_honoured_is_refused(theirs: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(theirs, **changes)


def moved(case: str, folder: Path, changes: dict[str, str | None]) -> Any:
    """A saved model with tensors renamed, or left out; returns what it was like before."""
    CASES[case].make().save_pretrained(folder)
    before = load_model(folder, precision="fp32").network.state_dict()
    tensors = load_file(folder / "model.safetensors")
    for old, new in changes.items():
        tensor = tensors.pop(old)
        if new is not None:
            tensors[new] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return before


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("t5", {"shared.weight": "encoder.embed_tokens.weight"}),
        ("bart", {"model.shared.weight": "model.encoder.embed_tokens.weight"}),
    ],
)
def test_the_shared_table_may_have_another_name(case: str, changes: dict[str, str | None], tmp_path: Path) -> None:
    before = moved(case, tmp_path, changes)
    after = load_model(tmp_path, precision="fp32").network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_head_of_its_own_that_is_not_stored_is_the_embedding(tmp_path: Path) -> None:
    moved("mt5", tmp_path, {"lm_head.weight": None})
    network: Any = load_model(tmp_path, precision="fp32").network
    assert network.config.is_tied
    assert network.head.linear.weight is network.embedding.tokens.weight


def test_a_bias_that_is_not_stored_is_zero(tmp_path: Path) -> None:
    moved("bart", tmp_path, {"final_logits_bias": None})
    network: Any = load_model(tmp_path, precision="fp32").network
    assert not network.head.linear.bias.any()
