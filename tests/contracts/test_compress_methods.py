"""What every method in compress/methods promises, whoever wrote it."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from danlu.compress.quantize import QuantizeConfig, quantize
from danlu.core import plugins
from danlu.core.errors import ModelError
from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel
from danlu.models.save import save_model
from tests.tiny import shop_rows, write_tiny

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": row["Title"]}, {"role": "assistant", "content": row["Review Text"]}]}
    for row in shop_rows(8)
]
CASES = list(itertools.product(plugins.names("compress.methods"), [True, False], [0, 8]))


@pytest.fixture(scope="module", params=CASES, ids=lambda c: f"{c[0]}-{'tied' if c[1] else 'untied'}-{c[2]}-rows")
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A plain folder, the compressed one, and the report."""
    method, is_tied, count = request.param
    home = tmp_path_factory.mktemp("compress")
    write_tiny(home / "plain", is_tied=is_tied)
    config = QuantizeConfig(method=method, calibration_rows=count)
    return home / "plain", home / "small", quantize(home / "plain", home / "small", config, ROWS)


def logits(folder: Path, precision: str = "fp32") -> torch.Tensor:
    model = load_model(folder, precision=precision)
    ids = [model.chat.render(row["messages"], add_generation_prompt=False).ids[:50] for row in ROWS[:4]]
    return LoadedModel(model).logits(torch.tensor(ids)).float()


def test_the_predictions_stay_close(done: tuple[Path, Path, dict[str, Any]]) -> None:
    exact, small = logits(done[0]), logits(done[1])
    assert (small - exact).norm() < 0.1 * exact.norm()
    assert (small.argmax(dim=-1) == exact.argmax(dim=-1)).float().mean() > 0.8  # random weights: many near ties


def test_the_folder_is_smaller_and_the_report_says_by_how_much(done: tuple[Path, Path, dict[str, Any]]) -> None:
    plain, small, report = done
    sizes = [sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in (plain, small)]
    assert report["size_bytes"] == sizes[1] < 0.6 * sizes[0]
    assert 0 < report["size_ratio"] < 0.6


def test_the_folder_names_a_scheme_the_loader_knows(done: tuple[Path, Path, dict[str, Any]]) -> None:
    assert load_model(done[1]).scheme in {plugins.load("compress.methods", c[0]).scheme for c in CASES}
    assert load_model(done[0]).scheme is None


def test_saving_and_loading_again_changes_no_bit(done: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    save_model(load_model(done[1], precision="fp32"), tmp_path / "again")
    first, second = (folder / "model.safetensors" for folder in (done[1], tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes()
    assert torch.equal(logits(done[1]), logits(tmp_path / "again"))


def test_the_same_input_gives_the_same_bytes(done: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    method = next(c[0] for c in CASES if plugins.load("compress.methods", c[0]).scheme == load_model(done[1]).scheme)
    config = QuantizeConfig(method=method, calibration_rows=done[2].get("calibration_rows", 0))
    assert quantize(done[0], tmp_path / "again", config, ROWS) == done[2]
    again = tmp_path / "again" / "model.safetensors"
    assert again.read_bytes() == (done[1] / "model.safetensors").read_bytes()


def test_it_also_runs_in_bf16(done: tuple[Path, Path, dict[str, Any]]) -> None:
    exact, small = logits(done[0]), logits(done[1], "bf16")
    assert (small - exact).norm() < 0.12 * exact.norm()


def test_the_conversation_format_comes_along(done: tuple[Path, Path, dict[str, Any]]) -> None:
    plain, small = (load_model(folder).chat for folder in done[:2])
    assert plain.prompt_ids(ROWS[0]["messages"][:1]) == small.prompt_ids(ROWS[0]["messages"][:1])
    assert plain.tokenizer.end_ids == small.tokenizer.end_ids


def test_a_compressed_model_is_not_compressed_again(done: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    for method in plugins.names("compress.methods"):
        with pytest.raises(ModelError, match=r"The model is already quantised \(.*\)\. Start from plain weights"):
            quantize(done[1], tmp_path / "twice", QuantizeConfig(method=method))
