"""The reference: what the model was before training, told once and kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from danlu.core.events import Silent
from danlu.text.chat import RenderedChat
from danlu.train.lora import LoraConfig, add_lora, lora_layers
from danlu.train.losses.completions import read_completions
from danlu.train.reference import adapters_off, reference_sums

from ..models.peer import some_ids
from .chats import fresh
from .opinions import job_in

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [RenderedChat(some_ids(n, seed=n), [i > 2 for i in range(n)]) for n in (9, 20, 5)]


@pytest.mark.parametrize("dora", [False, True])
def test_without_its_adapters_a_model_says_what_it_said_before(tiny_folder: Path, dora: bool) -> None:
    model = fresh(tiny_folder)
    before = read_completions(model.network, ROWS).sums()
    for parameter in add_lora(model, LoraConfig(rank=2, dora=dora)):
        torch.nn.init.normal_(parameter)
    layers = list(lora_layers(model).items())
    model.network.train()
    with adapters_off(model.network):
        inside = read_completions(model.network, ROWS).sums()
        assert not model.network.training
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(inside, before, rtol=0, atol=0)
    assert list(lora_layers(model).items()) == layers
    assert model.network.training
    assert (read_completions(model.network, ROWS).sums() - before).abs().max() > 1


def test_adapters_come_back_after_an_error(tiny_folder: Path) -> None:
    model = fresh(tiny_folder)
    add_lora(model, LoraConfig(rank=2))
    with pytest.raises(KeyError), adapters_off(model.network):
        raise KeyError
    assert lora_layers(model)


def test_the_reference_is_read_once(tiny_folder: Path, tmp_path: Path) -> None:
    model, titles = fresh(tiny_folder), list[str]()

    class Titles(Silent):
        def begin(self, title: str, total: int | None, unit: str) -> None:
            titles.append(title)

    found = reference_sums(model, ROWS, job_in(tmp_path, Titles()))
    assert found == pytest.approx(read_completions(model.network, ROWS).sums().tolist(), rel=1e-5)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.1)
    assert reference_sums(model, ROWS, job_in(tmp_path, Titles())) == found, "of the model it was"
    assert titles == ["reference"]
    assert reference_sums(model, ROWS[:2], job_in(tmp_path, Titles())) != found[:2], "other rows are read again"
    assert titles == ["reference", "reference"]
