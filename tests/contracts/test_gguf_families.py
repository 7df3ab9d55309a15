"""What every family that llama.cpp knows promises: its GGUF files are the model, and are written as read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from danlu.core import plugins
from danlu.core.errors import ModelError
from danlu.models.archs import Architecture
from danlu.models.archs._gguf import spelled
from danlu.models.gguf import GGUFFile
from danlu.models.load import load_model
from danlu.models.save import save_model
from tests.models.case import Case, save_peer
from tests.models.families import FAMILIES
from tests.models.gguf_peer import VOCABULARY, family_of, rope_tensors, stored_tensors, write_gguf

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = {name: case for name, case in FAMILIES.items() if case.gguf}
READ_BY_TRANSFORMERS = ("llama", "llama-tied", "mistral", "qwen2", "phi3")
"""Transformers reads GGUF files too, but not all numbers of all families."""


@dataclass(frozen=True)
class File:
    """Their model and its GGUF file."""

    case: Case
    peer: PreTrainedModel
    path: Path


def written(name: str, folder: Path) -> File:
    case = replace(CASES[name], numbers={**CASES[name].numbers, "vocab_size": VOCABULARY}, vocabulary=VOCABULARY)
    peer = case.make()
    return File(case, peer, write_gguf(peer, folder / "m.gguf"))


@pytest.fixture(scope="module", params=CASES)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[File]:
    one = written(request.param, tmp_path_factory.mktemp(request.param))
    yield one
    one.path.unlink()


def test_its_files_answer_as_the_model_they_were_made_of(file: File) -> None:
    compare = file.case.compare
    rows = compare.rows(file.case)
    ours = compare.ours(load_model(file.path, precision="fp32"), rows)
    for mine, theirs in zip(ours, compare.theirs(file.case, file.peer, rows, "right"), strict=True):
        torch.testing.assert_close(mine, theirs, atol=file.case.atol, rtol=file.case.atol)


@pytest.mark.parametrize("name", READ_BY_TRANSFORMERS)
def test_transformers_reads_the_same_model_from_the_same_file(name: str, tmp_path: Path) -> None:
    file = written(name, tmp_path)
    attention = file.case.numbers.get("attn_implementation")
    peer = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32, attn_implementation=attention
    ).eval()
    compare = file.case.compare
    rows = compare.rows(file.case)
    theirs = compare.theirs(file.case, peer, rows, "right")
    for mine, other in zip(compare.ours(load_model(file.path, precision="fp32"), rows), theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=file.case.atol, rtol=file.case.atol)


def test_a_model_read_from_a_file_saves_as_a_folder_of_the_same_model(file: File, tmp_path: Path) -> None:
    model = load_model(file.path, precision="fp32")
    save_model(model, tmp_path / "folder")
    again = load_model(tmp_path / "folder", precision="fp32")
    before, after = model.network.state_dict(), again.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert again.config == model.config
    (name,) = model.theirs["architectures"]  # the class that opens the folder elsewhere
    assert getattr(transformers, name).config_class.model_type == model.architecture.model_type


def test_its_tensors_are_written_as_they_are_read(file: File, tmp_path: Path) -> None:
    """Names and layout are those of llama.cpp's converter, tensor by tensor."""
    model = load_model(save_peer(file.peer, tmp_path / "theirs"), precision="fp32")
    family, held = model.architecture, stored_tensors(file.peer)
    assert family.gguf == family_of(file.peer)
    parameters = dict(file.peer.named_parameters())
    found = {
        family.gguf_name(name): (name, family.weight_to_gguf(name, parameters[name].detach(), model.config))
        for source in family.weights(model.config).values()
        for name in source.names
    }
    assert found.keys() == held.keys()
    for stored, (name, weight) in found.items():
        assert torch.equal(weight, held[stored]), stored
        again = family.weight_from_gguf(name, weight, model.config)
        torch.testing.assert_close(again, parameters[name].detach(), atol=1e-6, rtol=0.0)


def test_its_numbers_are_written_as_they_are_read(file: File, tmp_path: Path) -> None:
    model = load_model(save_peer(file.peer, tmp_path / "theirs"), precision="fp32")
    metadata, tensors = model.architecture.config_to_gguf(model.theirs)
    held = GGUFFile(file.path).metadata
    own = {key for key in held if key.startswith(f"{model.architecture.gguf}.")}
    assert own <= metadata.keys() | {f"{model.architecture.gguf}.attention.sliding_window"}
    for key in own & metadata.keys():
        is_text = isinstance(held[key], str)
        assert metadata[key] == (held[key] if is_text else pytest.approx(held[key], rel=1e-6)), key
    for name, factors in rope_tensors(file.peer.config).items():
        torch.testing.assert_close(tensors[name], factors, atol=1e-5, rtol=1e-5)
    theirs = model.architecture.config_from_gguf(metadata, tensors)
    again = model.architecture.read_config({**theirs, "tie_word_embeddings": model.config.is_tied})
    assert spelled(again, 0) == spelled(model.config, model.config.context_length)


@pytest.mark.parametrize("name", ["mistral-window", "llama-dynamic", "qwen3-window", "gemma2-uncapped"])
def test_a_model_that_gguf_has_no_words_for_is_refused(name: str) -> None:
    peer = FAMILIES[name].make()
    family = family_of_ours(peer)
    with pytest.raises(ModelError, match="GGUF has no words for some of this model's config"):
        family.config_to_gguf(peer.config.to_dict() | {"architectures": [type(peer).__name__]})


def test_a_model_that_writes_no_text_is_refused() -> None:
    peer = FAMILIES["llama-classify"].make()
    with pytest.raises(ModelError, match=r"This model does not write text\. GGUF files hold language models"):
        family_of_ours(peer).config_to_gguf(peer.config.to_dict() | {"architectures": [type(peer).__name__]})


def family_of_ours(peer: PreTrainedModel) -> Architecture:
    """The plugin that reads this model's config."""
    return plugins.load("models.archs", peer.config.model_type)


def test_a_family_whose_files_are_not_read_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "lama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"GGUF files of the family 'lama' are not supported\. Did you mean 'llama'"):
        load_model(tmp_path / "m.gguf")


def test_files_of_mistral_say_llama_and_are_read_as_it(tmp_path: Path) -> None:
    file = written("mistral", tmp_path)
    assert load_model(file.path).architecture.model_type == "llama"
