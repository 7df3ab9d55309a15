"""A recipe from compared answers to an adapter."""

from pathlib import Path

import pytest

from danlu.core.errors import TrainError
from danlu.core.events import Events, Silent
from danlu.flow.tuning import encode_watched
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


def test_all_weights_make_a_model_and_leave_the_length_and_rate_of_all_weights(
    tiny_folder: Path, tmp_path: Path
) -> None:
    made = make(tmp_path, tiny_folder, STAGE + "    lora: null\n")["liked"]
    assert made.manifest.kind == "model"
    assert "config.json" in made.manifest.files
    config = made.manifest.origin.config
    assert (config["optim"]["learning_rate"], config["steps"], config["epochs"]) == (5e-6, 4, None)
    assert made.manifest.metrics["audit"] == []


def test_compared_answers_are_audited_before_a_run(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}", "chosen": "" if n % 2 else "navy", "rejected": f"mud {n}"} for n in range(20)]
    with pytest.raises(
        TrainError, match=r"50\.0% of the rows have an empty answer\. For example: .*Leave these rows out"
    ):
        make(tmp_path, tiny_folder, STAGE, rows)


def test_validation_rows_of_which_none_can_be_used_are_said_and_left_out() -> None:
    said: list[str] = []

    class Listener(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    def encode(rows: object) -> list[int]:
        raise TrainError("No row can be trained on: 1 same.", "Mend it.")

    assert encode_watched(encode, [{}], Events(display=Listener())) == []
    assert said == [
        "Nothing is validated, for of 1 validation rows none can be used: No row can be trained on: 1 same."
    ]
    assert encode_watched(encode, [], Events()) == []
