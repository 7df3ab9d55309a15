"""Encoder-decoders against the loss of transformers, and what becomes of rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from danlu.core.errors import ConfigError, TrainError
from danlu.core.events import Events, Silent
from danlu.core.records import GenerateOptions
from danlu.models.generate import generate
from danlu.models.load import load_model
from danlu.models.save import save_model
from danlu.train.settings import Job
from danlu.train.source_target import SourceTarget, encode_rows
from danlu.train.stages.seq2seq import Seq2SeqConfig, score, summed_loss, train
from danlu.train.texts import TuningOptim
from tests.models.case import randomised
from tests.models.encoders import WORDS
from tests.tiny import write_tiny

STILL = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
SIZES: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40, **STILL,
}  # fmt: skip
VOCABULARY = ["<s>", "<pad>", "</s>", "<unk>", *WORDS]
SHARED = {"vocab_size": len(VOCABULARY), "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
ROWS = [
    {"source": "the cat sat", "target": "猫 坐"},
    {"source": "the dog sat on a mat", "target": "狗 坐 在 垫"},
    {"source": "ann", "target": "ann lee"},
    {"source": "paris", "target": "上 海"},
]
PLAIN = TuningOptim(learning_rate=5e-3, weight_decay=0.0, warmup_steps=0, schedule="constant", clip_norm=None)
CONFIG = Seq2SeqConfig(
    samples=0, steps=10, tokens_per_step=64, max_target_tokens=10, optim=PLAIN, precision="fp32", num_beams=2
)


def job(folder: Path) -> Job:
    return Job(work=folder / "work", log_path=folder / "log.jsonl", events=Events(display=Silent()), seed=3)


def save(folder: Path, peer: PreTrainedModel, template: str = "<s> $A </s>") -> PreTrainedModel:
    """A peer with random weights and a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(VOCABULARY[:4])
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 2)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
    randomised(peer.eval()).save_pretrained(folder)
    return peer


def bart(folder: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    config = BartConfig(**SIZES, **SHARED, decoder_start_token_id=2, forced_eos_token_id=2)
    return save(folder, BartForConditionalGeneration(config))


def t5(folder: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    config = T5Config(**sizes, **SHARED, decoder_start_token_id=1)
    return save(folder, T5ForConditionalGeneration(config), "$A </s>")


def marian(folder: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    config = MarianConfig(**SIZES, **SHARED, decoder_start_token_id=1, scale_embedding=True)
    return save(folder, MarianMTModel(config), "$A </s>")


@pytest.mark.parametrize("make", [bart, t5, marian])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_transformers_own(tmp_path: Path, make: Any, smoothing: float) -> None:
    peer = make(tmp_path)
    model = load_model(tmp_path, precision="fp32")
    items = encode_rows(ROWS, model).items
    sources = [torch.tensor(item.source) for item in items]
    targets = [torch.tensor(item.target) for item in items]
    ids = torch.nn.utils.rnn.pad_sequence(sources, batch_first=True, padding_value=1)
    labels = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100)
    out = peer(input_ids=ids, attention_mask=(ids != 1).long(), labels=labels)
    expected = out.loss
    if smoothing:
        logits = out.logits.reshape(-1, out.logits.shape[-1])
        expected = torch.nn.functional.cross_entropy(logits, labels.flatten(), label_smoothing=smoothing)
    found = summed_loss(model, items, smoothing)
    torch.testing.assert_close(found.total / found.count, expected, atol=1e-5, rtol=0)


def test_gradients_do_not_depend_on_micro_batches(tmp_path: Path) -> None:
    bart(tmp_path)
    states: list[dict[str, torch.Tensor]] = []
    for micro_tokens in (None, 12):
        model = load_model(tmp_path, precision="fp32")
        sgd = dataclasses.replace(PLAIN, name="sgd", momentum=0.0, learning_rate=1.0)
        config = dataclasses.replace(CONFIG, steps=1, micro_tokens=micro_tokens, optim=sgd)
        train(model, encode_rows(ROWS, model).items, [], config, job(tmp_path / str(micro_tokens)))
        states.append(dict(model.network.state_dict()))
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=2e-6, rtol=0, msg=name)


def test_targets_are_learnt_and_written_with_beams_after_saving(tmp_path: Path) -> None:
    bart(tmp_path)
    model = load_model(tmp_path, precision="fp32")
    items = encode_rows(ROWS, model).items

    def same(outputs: Any, references: Any) -> dict[str, float]:
        return {"same": sum(a == b for a, b in zip(outputs, references, strict=True)) / len(outputs)}

    config = dataclasses.replace(CONFIG, steps=80, validate_every=40)
    metrics = train(model, items, items, config, job(tmp_path / "job"), compare=same)
    assert metrics["validation"]["loss"] < 0.1
    assert metrics["validation"]["same"] == 1.0
    save_model(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved", precision="fp32")
    (answer,) = generate(again, ["the dog sat on a mat"], GenerateOptions(max_tokens=10, num_beams=2))
    assert answer.text == "狗 坐 在 垫"
    assert answer.finish_reason == "stop"


def test_writing_is_left_out_where_it_is_not_asked_for(tmp_path: Path) -> None:
    t5(tmp_path)
    model = load_model(tmp_path, precision="fp32")
    items = encode_rows(ROWS, model).items
    assert score(model, items, CONFIG).keys() == {"loss"}
    none = dataclasses.replace(CONFIG, num_written=0)
    assert score(model, items, none, lambda outputs, references: {"x": 1.0}).keys() == {"loss"}


def test_prefixes_limits_and_ends_are_as_configured(tmp_path: Path) -> None:
    t5(tmp_path)
    model = load_model(tmp_path, precision="fp32")
    row = {"source": "a b c d", "target": "the cat sat on a mat"}
    words = {word: index for index, word in enumerate(VOCABULARY)}
    options = {"max_source_tokens": 4, "max_target_tokens": 4, "source_prefix": "dog ", "target_prefix": "lee "}
    found = encode_rows([row, {"source": "a", "target": " "}], model, **options)
    source, target = ([words[word] for word in text.split()] for text in ("dog a b", "lee the cat"))
    assert found.items == [SourceTarget([*source, 2], [*target, 2], row["target"])]
    assert (found.left_out, found.truncated) == ({"empty": 1}, 1)


def test_a_target_ends_even_where_the_tokenizer_does_not_end_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BartConfig(**SIZES, **SHARED, decoder_start_token_id=2)
    save(tmp_path, BartForConditionalGeneration(config), "$A")
    (item,) = encode_rows(ROWS[:1], load_model(tmp_path, precision="fp32")).items
    assert item.target == [VOCABULARY.index("猫"), VOCABULARY.index("坐"), 2]


def test_models_and_settings_that_cannot_be_trained_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"This model has no encoder and decoder\. Use a model such as T5, BART"):
        encode_rows(ROWS, load_model(write_tiny(tmp_path), precision="fp32"))
    with pytest.raises(ConfigError, match=r"tokens_per_step 100 is less than a source and a target may have\."):
        Seq2SeqConfig(tokens_per_step=100)
    with pytest.raises(ConfigError, match=r"num_beams is 0\. Use 1 or more"):
        Seq2SeqConfig(num_beams=0)
    with pytest.raises(ConfigError, match=r"num_written is -1\. Use 0 or more"):
        Seq2SeqConfig(num_written=-1)
    with pytest.raises(ConfigError, match=r"label_smoothing is 1\.0\. Use 0 or more, and less than 1"):
        Seq2SeqConfig(label_smoothing=1.0)
