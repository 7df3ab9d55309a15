import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from danlu.compress.methods import int8
from danlu.compress.quantize import QuantizeConfig, quantize
from danlu.core.records import GenerateOptions
from danlu.models.archs.llama import plugin as llama
from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel
from danlu.models.model import Model
from danlu.models.network import ModelConfig
from danlu.text.chat import RenderedChat
from tests.tiny import shop_rows, write_tiny

pytestmark = pytest.mark.usefixtures("one_thread")

TIED = pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
OUTLIERS = [3, 11, 20]


def write_model(folder: Path, is_tied: bool, loud: float = 1.0) -> Path:
    """A tiny model; with ``loud``, a few channels of the norms' outputs are that much larger than the others."""
    write_tiny(folder, is_tied=is_tied)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if "layernorm" in name:
            weight[OUTLIERS] *= loud
        elif any(part in name for part in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")):
            weight[:, OUTLIERS] /= loud
    save_file(weights, folder / "model.safetensors")
    return folder


def conversations(count: int = 12) -> list[dict[str, list[dict[str, str]]]]:
    rows = shop_rows(count)
    return [
        {
            "messages": [
                {"role": "user", "content": str(r["Title"])},
                {"role": "assistant", "content": str(r["Review Text"])},
            ]
        }
        for r in rows
    ]


def ids_of(model: Model) -> torch.Tensor:
    """Conversations that calibration has not seen, cut to one length."""
    rows = [model.chat.render(r["messages"], add_generation_prompt=False).ids[:60] for r in conversations(30)[14:22]]
    return torch.tensor(rows)


def divergence(model: Model, other: Model) -> float:
    """Mean Kullback-Leibler divergence of the next-token distributions, in nats."""
    ids = ids_of(model)
    exact, rounded = (torch.log_softmax(LoadedModel(m).logits(ids), dim=-1) for m in (model, other))
    return float((exact.exp() * (exact - rounded)).sum(dim=-1).mean())


@TIED
def test_smoothing_alone_changes_no_logits(tmp_path: Path, is_tied: bool) -> None:
    model = load_model(write_model(tmp_path / "m", is_tied, loud=30.0), precision="fp32")
    before = LoadedModel(model).logits(ids_of(model))
    rendered = [model.chat.render(r["messages"], add_generation_prompt=False) for r in conversations()]
    columns = int8._smooth(model.network, int8._peaks(model.network, rendered))
    assert (columns is not None) == is_tied
    if columns is not None:
        assert (columns != 1).any()
        model.network.embedding.register_forward_hook(lambda _, __, out: out * columns)
    after = LoadedModel(model).logits(ids_of(model))
    assert (after - before).abs().max() < 1e-4 * before.abs().max()


@TIED
def test_calibration_brings_the_predictions_closer(tmp_path: Path, is_tied: bool) -> None:
    folder = write_model(tmp_path / "m", is_tied, loud=30.0)
    quantize(folder, tmp_path / "plain", QuantizeConfig(calibration_rows=0), conversations())
    quantize(folder, tmp_path / "calibrated", QuantizeConfig(calibration_rows=12), conversations())
    exact = load_model(folder, precision="fp32")
    plain, calibrated = (
        divergence(exact, load_model(tmp_path / name, precision="fp32")) for name in ("plain", "calibrated")
    )
    assert calibrated < 0.5 * plain
    assert calibrated < 0.05


@TIED
def test_a_row_is_answered_the_same_in_any_batch(tmp_path: Path, is_tied: bool) -> None:
    quantize(write_model(tmp_path / "m", is_tied), tmp_path / "q", QuantizeConfig(), conversations())
    model = LoadedModel(load_model(tmp_path / "q", precision="fp32"))
    prompts = ["The navy", "A soft black cotton dress has pockets and", "x"]
    options = GenerateOptions(max_tokens=16)
    assert model.generate(prompts, options) == [model.generate([prompt], options)[0] for prompt in prompts]


@TIED
def test_every_matrix_is_stored_in_one_byte_a_weight(tmp_path: Path, is_tied: bool) -> None:
    folder = write_model(tmp_path / "m", is_tied)
    report = quantize(folder, tmp_path / "q", QuantizeConfig(), conversations())
    stored = load_file(tmp_path / "q" / "model.safetensors")
    for name, weight in load_file(folder / "model.safetensors").items():
        assert stored[name].shape == weight.shape
        assert stored[name].dtype == (torch.int8 if weight.dim() == 2 else torch.float32)
    tensor_bytes = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    assert tensor_bytes == quantized_bytes(load_model(folder).config)
    assert 0 < report["size_bytes"] - tensor_bytes < 8000  # names and shapes
    assert ("lm_head.weight" in stored) != is_tied


def quantized_bytes(config: ModelConfig) -> int:
    """One byte a weight and four bytes a row of every matrix; four bytes for every other number."""
    with torch.device("meta"):
        weights = list(config.make().parameters())
    stored = sum(w.numel() + 4 * w.shape[0] if w.dim() == 2 else 4 * w.numel() for w in weights)
    return stored + 4 * config.width  # what an embedding undoes, a number a column


SMOLLM2 = {
    "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip
"""config.json of SmolLM2-135M, as far as its size goes."""


def test_the_real_model_shrinks_to_at_most_27_percent() -> None:
    names = 30 * 14 * 200
    assert (quantized_bytes(llama.read_config(SMOLLM2)) + names) / (4 * 134_515_008) <= 0.27


def test_the_report_names_the_worst_matrix(tmp_path: Path, tiny_folder: Path) -> None:
    report = quantize(tiny_folder, tmp_path / "q", QuantizeConfig(), conversations())
    assert report["layers"] == 2 * 4 + 1
    assert report["calibration_rows"] == 12
    ((name, worst),) = report["snr_db_worst"].items()
    assert 25 < worst <= report["snr_db_mean"] < 60
    assert name == "embedding" or name.startswith("stack.blocks.")


def test_only_as_many_rows_as_wanted_are_read(tmp_path: Path, tiny_folder: Path) -> None:
    rows = iter(conversations(12))
    report = quantize(tiny_folder, tmp_path / "q", QuantizeConfig(calibration_rows=5), rows)
    assert report["calibration_rows"] == 5
    assert len(list(rows)) == 7


def test_a_conversation_longer_than_the_context_calibrates_with_its_beginning(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "m", context=64)
    rows = [{"messages": [{"role": "user", "content": "navy dress " * 100}]}]
    assert quantize(folder, tmp_path / "q", QuantizeConfig(), rows)["calibration_rows"] == 1


def test_a_channel_that_is_always_zero_does_no_harm(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.input_layernorm.weight"][5] = 0.0
    weights["model.layers.0.mlp.up_proj.weight"][7] = 0.0
    weights["model.embed_tokens.weight"][9] = 0.0
    save_file(weights, folder / "model.safetensors")
    quantize(folder, tmp_path / "q", QuantizeConfig(), conversations())
    exact, rounded = load_model(folder, precision="fp32"), load_model(tmp_path / "q", precision="fp32")
    assert divergence(exact, rounded) < 0.05


def test_calibration_is_packed_into_batches_of_bounded_size() -> None:
    rows = [RenderedChat([1] * length, [False] * length) for length in (1500, 600, 10, 2048, 1, 5000)]
    assert [[len(row.ids) for row in batch] for batch in int8._batches(rows)] == [
        [1500],
        [600, 10],
        [2048],
        [1],
        [5000],
    ]
    assert dataclasses.replace(QuantizeConfig()) == QuantizeConfig()
