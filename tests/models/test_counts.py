"""Published models counted from their config alone, and small ones held against the real thing."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from danlu.compress.quantize import QuantizeConfig, quantize
from danlu.core import plugins
from danlu.models.attention import AttentionConfig
from danlu.models.counts import Counts, count, seen_pairs
from danlu.models.gguf import GGUFFile
from danlu.models.gguf_write import export_gguf
from danlu.models.load import load_model
from danlu.models.paged import PAGE, PagedCache
from danlu.models.tensors import TensorFiles

from .families import FAMILIES

pytestmark = pytest.mark.usefixtures("one_thread")

GPT2 = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_ctx": 1024, "n_embd": 768, "n_head": 12,
    "n_layer": 12, "n_positions": 1024, "vocab_size": 50257, "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu_new",
}  # fmt: skip
BERT = {
    "model_type": "bert", "architectures": ["BertModel"], "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 512,
    "type_vocab_size": 2, "vocab_size": 30522, "layer_norm_eps": 1e-12,
}  # fmt: skip
LLAMA2 = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
MISTRAL = {
    **LLAMA2, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "intermediate_size": 14336,
    "num_key_value_heads": 8, "max_position_embeddings": 32768, "sliding_window": 4096,
}  # fmt: skip
MIXTRAL = {
    **MISTRAL, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "sliding_window": None,
    "num_local_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip
GPT3 = {**GPT2, "n_layer": 96, "n_embd": 12288, "n_head": 96, "n_ctx": 2048, "n_positions": 2048}


def counted(theirs: dict[str, Any], length: int | None = None) -> Counts:
    return count(plugins.load("models.archs", theirs["model_type"]).read_config(theirs), length)


@pytest.mark.parametrize(
    ("theirs", "published"),
    [
        (GPT2, 124_439_808),
        (BERT, 109_482_240),
        (LLAMA2, 6_738_415_616),
        (MISTRAL, 7_241_732_096),
        (MIXTRAL, 46_702_792_704),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_parameters_are_those_that_were_published(theirs: dict[str, Any], published: int) -> None:
    assert counted(theirs).parameters == published


def test_a_token_meets_two_of_mixtrals_eight_experts() -> None:
    """Published as 12.9 B: all but six experts of each layer."""
    counts = counted(MIXTRAL)
    assert counts.active_parameters == 12_879_925_248
    assert counts.parameters - counts.active_parameters == 32 * 6 * 3 * 4096 * 14336
    assert counted(LLAMA2).active_parameters == counted(LLAMA2).parameters


def test_gpt3_is_175_billion() -> None:
    counts = counted(GPT3)
    assert counts.parameters == 174_604_259_328  # "175B", with the 50,257 tokens and 2,048 places of the paper
    # Brown et al. 2020, table D.1: 3.14e23 FLOPs for 300 B tokens, six for each parameter, attention left out.
    without_attention = counts.training_flops - 3 * counts.attention_flops
    assert without_attention * 300e9 == pytest.approx(3.14e23, rel=0.01)


def test_flops_are_twice_the_weights_and_attention() -> None:
    counts = counted(LLAMA2, 1)
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096
    assert counts.forward_flops == 2 * matrices + 32 * 4 * 4096
    long = counted(LLAMA2, 4096)
    assert long.attention_flops == 32 * 4 * 4096 * 4097 // 2
    assert long.forward_flops - long.attention_flops == 2 * matrices
    assert long.training_flops == 3 * long.forward_flops


def test_images_cost_what_their_papers_say() -> None:
    """Multiply-adds: 4.1 G for ResNet-50 (He et al. 2016 say 3.8 for another stride), 0.3 G for MobileNetV2."""
    labels = {"id2label": {str(number): str(number) for number in range(1000)}}
    resnet = counted({"model_type": "resnet", "architectures": ["ResNetForImageClassification"], **labels})
    assert resnet.parameters == 25_557_032
    assert resnet.forward_flops / 2 == pytest.approx(4.09e9, rel=0.005)
    vit = counted({"model_type": "vit", "architectures": ["ViTForImageClassification"], **labels})
    assert (vit.parameters, vit.unit, vit.length) == (86_567_656, "image", 197)
    assert vit.forward_flops / 2 == pytest.approx(17.56e9, rel=0.005)
    assert vit.cache is None


# ---- cache -----------------------------------------------------------------------------------------------------------


def test_the_cache_of_a_token_is_its_keys_and_values() -> None:
    cache = counted(LLAMA2).cache
    assert cache is not None
    assert cache.bytes_per_token == {"fp32": 2 * 32 * 4096 * 4, "bf16": 2 * 32 * 4096 * 2}
    assert cache.bytes_at_context["bf16"] == 4096 * cache.bytes_per_token["bf16"]
    assert counted(BERT).cache is None


def test_layers_with_a_window_stop_growing() -> None:
    windowed, whole = counted(MISTRAL).cache, counted({**MISTRAL, "sliding_window": None}).cache
    assert windowed is not None
    assert whole is not None
    assert windowed.bytes_per_token == whole.bytes_per_token
    assert windowed.bytes_at_context["bf16"] * 8 == whole.bytes_at_context["bf16"]  # 4,096 of 32,768 tokens


@pytest.mark.parametrize("name", ["llama", "mamba2", "qwen3-next", "t5"])
def test_the_cache_is_what_the_cache_takes(name: str) -> None:
    config = load_config(name)
    counts = count(config).cache
    assert counts is not None
    tokens, source = 3 * PAGE, 2 * PAGE
    real = PagedCache(config.stack, 3, torch.float32, num_memory_pages=2).size_bytes()
    per_source = counts.memory_bytes_per_token["fp32"]
    assert real == counts.state_bytes + tokens * counts.bytes_per_token["fp32"] + source * per_source


def load_config(name: str) -> Any:
    config = FAMILIES[name].make().config
    theirs = {**config.to_dict(), "architectures": [FAMILIES[name].peer.__name__]}
    return plugins.load("models.archs", config.model_type).read_config(theirs)


# ---- held against the real thing -------------------------------------------------------------------------------------

NOT_ALIKE = ("bart", "mbart", "marian")
"""Transformers does not count the shift of BART's logits, and counts Marian's fixed positions."""


@pytest.mark.parametrize("name", [name for name in FAMILIES if "-" not in name and name not in NOT_ALIKE])
def test_parameters_and_memory_are_those_of_the_real_model(name: str, tmp_path: Path) -> None:
    peer = FAMILIES[name].make()
    peer.save_pretrained(tmp_path)
    counts = count(load_config(name))
    assert counts.parameters == peer.num_parameters()
    model = load_model(tmp_path, precision="fp32")
    held = {t.data_ptr(): t.numel() * t.element_size() for t in model.network.state_dict().values()}
    assert counts.memory_bytes["fp32"] == sum(held.values())


@pytest.mark.parametrize("window", [None, 1, 3, 7, 8, 50])
@pytest.mark.parametrize("causal", [True, False])
def test_pairs_that_see_each_other_are_counted(window: int | None, causal: bool) -> None:
    config = AttentionConfig(num_heads=1, num_kv_heads=1, head_width=2, causal=causal, window=window)
    near = range(window or 10**9)
    expected = sum(abs(i - j) in near and (j <= i or not causal) for i in range(8) for j in range(8))
    assert seen_pairs(config, 8) == expected


def test_products_are_those_that_torch_counts(tiny_folder: Path) -> None:
    model = load_model(tiny_folder, precision="fp32")
    counts = count(model.config, 16)
    ids = torch.zeros(16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.network.rows(ids, [16])
    linear = sum(
        flops for name, flops in counter.get_flop_counts()["Global"].items() if str(name) in ("aten.mm", "aten.addmm")
    )
    head = 2 * model.config.vocabulary_size * model.config.width
    assert 16 * (counts.forward_flops - counts.attention_flops - head) == linear


def test_int8_and_q4_are_the_bytes_of_the_files(tmp_path: Path, tiny_folder: Path) -> None:
    memory = count(load_model(tiny_folder).config).memory_bytes
    quantize(tiny_folder, tmp_path / "int8", QuantizeConfig())
    files = TensorFiles.of_folder(tmp_path / "int8")
    assert memory["int8"] == sum(files.size_bytes(name) for name in files.names())
    export_gguf(tiny_folder, tmp_path / "m.gguf", "q4_0")
    file = GGUFFile(tmp_path / "m.gguf")
    assert memory["q4_0"] == sum(file.size_bytes(name) for name in file.names())
    plain = TensorFiles.of_folder(Path(shutil.copytree(tiny_folder, tmp_path / "plain")))
    assert memory["fp32"] == sum(plain.size_bytes(name) for name in plain.names())
