"""A recipe from compared answers to an adapter."""

from pathlib import Path

import pytest

from danlu.models.load import load_model
from danlu.train.adapter import load_adapter
from danlu.train.lora import lora_layers

from .opinions import make

pytestmark = pytest.mark.usefixtures("one_thread")

STAGE = """
  - name: liked
    use: dpo
    inputs: {model: base, data: rows}
    steps: 4
    max_row_tokens: 80
    precision: fp32
"""


@pytest.mark.parametrize("method", ["", "    kto: {beta: 0.2}\n", "    orpo: {}\n"], ids=["dpo", "kto", "orpo"])
def test_compared_answers_make_an_adapter(tiny_folder: Path, tmp_path: Path, method: str) -> None:
    made = make(tmp_path, tiny_folder, STAGE + method)["liked"]
    assert made.manifest.kind == "adapter"
    assert made.manifest.metrics["train_rows"] == (32 if "kto" in method else 16)
    assert made.manifest.metrics["validation"]["validation_loss"] > 0
    assert {"adapter_config.json", "adapter_model.safetensors", "log.jsonl"} <= set(made.manifest.files)
    model = load_model(tiny_folder)
    load_adapter(model, made.path)
    assert lora_layers(model)
