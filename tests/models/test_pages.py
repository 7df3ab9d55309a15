"""Loading takes as much memory as the model it makes: measured in a process of its own, on 200 MB of random weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from danlu.models.pages import empty_pages
from tests.tiny import make_tokenizer

WIDTH, FEEDFORWARD, LAYERS, VOCABULARY = 768, 2048, 6, 8_000
PARAMETERS = VOCABULARY * WIDTH + LAYERS * (4 * WIDTH**2 + 3 * WIDTH * FEEDFORWARD + 2 * WIDTH) + WIDTH
LARGEST_BYTES = 4 * VOCABULARY * WIDTH
"""The token table as it is stored."""

PROCESS = """
import gc, sys
from pathlib import Path
import torch
from danlu.models.load import load_model
import danlu.models.archs.llama

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

torch.set_num_threads(1)
torch.zeros(64, 64) @ torch.zeros(64, 64)
gc.collect()
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts anew
before = status("VmRSS")
model = load_model(Path(sys.argv[1]), precision=sys.argv[2], scheme=sys.argv[3] or None)
print(status("VmHWM") - before, sum(t.numel() * t.element_size() for t in model.network.buffers()))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded fp32 model."""
    folder = tmp_path_factory.mktemp("large") / "model"
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 12,
        "intermediate_size": FEEDFORWARD,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shards: list[dict[str, torch.Tensor]] = [
        {"model.embed_tokens.weight": torch.rand(VOCABULARY, WIDTH), "model.norm.weight": torch.rand(WIDTH)}
    ]
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        square = {f"{name}.self_attn.{x}_proj.weight": torch.rand(WIDTH, WIDTH) for x in "qkvo"}
        wide = {f"{name}.mlp.{x}_proj.weight": torch.rand(FEEDFORWARD, WIDTH) for x in ("gate", "up")}
        norms = {f"{name}.{x}_layernorm.weight": torch.rand(WIDTH) for x in ("input", "post_attention")}
        shards.append({**square, **wide, **norms, f"{name}.mlp.down_proj.weight": torch.rand(WIDTH, FEEDFORWARD)})
    index: dict[str, str] = {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file)
        index |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def peak(root: Path, model: Path, precision: str, scheme: str = "") -> tuple[int, int]:
    """Most bytes above those before loading, and bytes of the model's buffers."""
    command = [sys.executable, "-c", PROCESS, str(model), precision, scheme]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    most, buffers = done.stdout.split()
    return int(most), int(buffers)


def test_loading_peaks_at_the_size_of_the_model(root: Path, folder: Path) -> None:
    size = 4 * PARAMETERS
    assert size > 190e6
    most, _ = peak(root, folder, "fp32")
    assert 0.95 * size < most < 1.1 * size


def test_a_narrower_type_peaks_at_the_narrower_size_and_one_tensor(root: Path, folder: Path) -> None:
    most, _ = peak(root, folder, "bf16")
    assert most < 1.1 * 2 * PARAMETERS + LARGEST_BYTES


def test_straight_to_int8_the_plain_model_never_stands_in_memory(root: Path, folder: Path) -> None:
    most, buffers = peak(root, folder, "fp32", "int8")
    assert PARAMETERS < buffers < 1.02 * PARAMETERS
    assert most < 1.25 * buffers + 1.5 * LARGEST_BYTES


EXPORT = PROCESS.replace("from danlu.models.load import load_model", "from danlu.models.gguf_write import export_gguf")
EXPORT = (
    EXPORT[: EXPORT.index("model = ")]
    + """
export_gguf(Path(sys.argv[1]), Path(sys.argv[2]), "q8_0")
print(status("VmHWM") - before, 0)
"""
)


def test_an_export_passes_the_weights_through(root: Path, folder: Path, tmp_path: Path) -> None:
    make_tokenizer().save(str(folder / "tokenizer.json"))
    command = [sys.executable, "-c", EXPORT, str(folder), str(tmp_path / "m.gguf")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert (tmp_path / "m.gguf").stat().st_size > PARAMETERS
    assert int(done.stdout.split()[0]) < 3 * LARGEST_BYTES


def test_a_tensor_that_no_memory_holds_is_a_memory_error():
    with pytest.raises(MemoryError, match="no memory for 1125899906842624 bytes"):
        empty_pages((1 << 50,), torch.uint8)
