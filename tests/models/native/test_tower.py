"""Whole rows through a tower in C give the hidden states that torch gives."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from danlu.models.load import load_model
from danlu.models.native.kernels import load_kernels
from danlu.models.native.tower import NativeTower, native_tower
from tests.models.families import FAMILIES, families
from tests.models.native.cases import family, needs_kernels
from tests.models.peer import save_llama, some_ids

pytestmark = [pytest.mark.usefixtures("one_thread"), needs_kernels]

ENCODERS = [
    name for name in families(lambda case: True)
    if name.startswith(("bert", "roberta", "xlm", "distilbert", "modernbert", "t5", "bart", "olmo2-model", "switch"))
]  # fmt: skip
LENGTHS = [7, 1, 19]


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_gives_what_torch_gives(name: str, tmp_path: Path) -> None:
    network = family(name, tmp_path).network
    tower = getattr(network, "encoder", network)
    made = native_tower(tower)
    assert made is not None
    ids = some_ids(sum(LENGTHS), vocabulary=FAMILIES[name].vocabulary)
    with torch.inference_mode():
        expected = tower.rows(torch.tensor(ids), LENGTHS)
    torch.testing.assert_close(made.encode(ids, LENGTHS), expected, atol=1e-4, rtol=1e-4)
    outs = [6, 26]
    assert torch.equal(made.encode(ids, LENGTHS, outs=outs), made.encode(ids, LENGTHS)[outs])


def test_token_types_are_told_apart(tmp_path: Path) -> None:
    network = family("bert-types", tmp_path).network
    ids, types = torch.tensor(some_ids(9, vocabulary=100)), torch.tensor([0] * 4 + [1] * 5)
    made = native_tower(network)
    assert made is not None
    with torch.inference_mode():
        expected = network.rows(ids, [9], types=types)
    torch.testing.assert_close(made.encode(ids, [9], types=types), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(made.encode(ids, [9]), expected, atol=1e-2)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_rows_longer_than_the_first_pages_fit_and_company_changes_no_bit(tmp_path: Path, num_threads: int) -> None:
    save_llama(tmp_path, max_position_embeddings=8192)
    network = load_model(tmp_path, precision="fp32").network
    made = native_tower(network, num_threads=num_threads)
    assert made is not None
    ids = some_ids(4300)
    together = made.encode(ids, [4000, 300])
    assert torch.equal(together[4000:], made.encode(ids[4000:], [300]))
    with torch.inference_mode():
        expected = network.rows(torch.tensor(ids[:4000]), [4000])
    torch.testing.assert_close(together[:4000], expected, atol=3e-4, rtol=1e-3)


def test_embeddings_may_come_from_elsewhere(tmp_path: Path) -> None:
    network = family("distilbert-model", tmp_path).network
    ids = some_ids(5, vocabulary=100)
    made = native_tower(network)
    assert made is not None
    with torch.inference_mode():
        x = network.embedding(torch.tensor(ids), torch.arange(5))
    assert torch.equal(made.encode_embedded(x, [5]), made.encode(ids, [5]))


def test_the_log_says_why_torch_goes_on_with_a_tower(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert native_tower(family("mamba2", tmp_path).network) is None
    assert "the native kernels are not used for this tower: layer 0: Mamba2 is not written in C" in caplog.text


def test_a_closed_tower_does_nothing_more(tmp_path: Path) -> None:
    kernels = load_kernels()
    assert kernels is not None
    made = NativeTower(kernels, family("bert", tmp_path).network, torch.float32, 2)
    made.close()
    with pytest.raises(AssertionError, match="these threads were closed"):
        made.encode([1, 2], [2])
