"""What reads whole rows in C is found again, belongs to its network, and says what torch says."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertForSequenceClassification, BertForTokenClassification, BertModel

from danlu.models.encode import classify, embed, run_rows, tag
from danlu.models.fastest import own_reader
from danlu.models.load import load_model
from danlu.models.model import Model, Precision
from danlu.models.native import readers
from danlu.models.native.readers import read_tower
from tests.models.encoders import TEXTS, save_encoder, save_sentence
from tests.models.native.cases import family, needs_kernels
from tests.models.peer import some_ids

pytestmark = [pytest.mark.usefixtures("one_thread"), needs_kernels]

LENGTHS = [19, 7, 7, 1]
ROWS = [(some_ids(length, seed=length, vocabulary=100), [0] * length) for length in LENGTHS]


def read(model: Model, lengths: list[int] = LENGTHS) -> Tensor:
    found = read_tower(model.network, torch.tensor(some_ids(sum(lengths), vocabulary=100)), lengths, torch.float32)
    assert found is not None
    return found


def both(folder: Path) -> tuple[Model, Model]:
    """A packed model, and the same plain."""
    fast, plain = (load_model(folder, precision="fp32", is_packed=way) for way in (True, False))
    return fast, plain


def test_a_packed_model_embeds_as_a_plain_one(tmp_path: Path) -> None:
    save_encoder(tmp_path, BertModel)
    save_sentence(tmp_path)
    fast, plain = both(tmp_path)
    torch.testing.assert_close(embed(fast, TEXTS), embed(plain, TEXTS), atol=1e-5, rtol=1e-5)
    assert fast.network in readers._readers
    assert plain.network not in readers._readers


def test_a_packed_model_classifies_as_a_plain_one(tmp_path: Path) -> None:
    save_encoder(tmp_path, BertForSequenceClassification, num_labels=3)
    found, expected = ([one for labels in classify(model, TEXTS) for one in labels] for model in both(tmp_path))
    assert [one.label for one in found] == [one.label for one in expected]
    assert [one.probability for one in found] == pytest.approx([one.probability for one in expected], abs=1e-5)


def test_a_packed_model_tags_as_a_plain_one(tmp_path: Path) -> None:
    save_encoder(tmp_path, BertForTokenClassification, id2label=dict(enumerate(["O", "B-PER", "I-PER", "B-LOC"])))
    found, expected = (tag(model, TEXTS) for model in both(tmp_path))
    places = [[(span.label, span.start, span.end) for span in spans] for spans in found]
    assert places == [[(span.label, span.start, span.end) for span in spans] for spans in expected]
    assert sum(map(len, places)) > 3


@pytest.mark.parametrize(("precision", "scheme", "least"), [("bf16", None, 0.999), ("fp32", "int8", 0.995)])
def test_fewer_digits_point_the_same_way(
    precision: Precision, scheme: str | None, least: float, tmp_path: Path
) -> None:  # fmt: skip
    exact = run_rows(family("bert-classify", tmp_path), ROWS)
    model = load_model(tmp_path, precision=precision, scheme=scheme, is_packed=True, with_tokenizer=False)
    found = run_rows(model, ROWS)
    assert model.network in readers._readers
    for ours, theirs in zip(found, exact, strict=True):
        assert torch.nn.functional.cosine_similarity(ours.float().flatten(), theirs.flatten(), dim=0) > least


def test_company_and_packs_change_nothing(tmp_path: Path) -> None:
    model = family("bert-classify", tmp_path)
    model.is_packed = True
    whole, alone = run_rows(model, ROWS), run_rows(model, ROWS, pack_tokens=1)
    for ours, theirs in zip(whole, alone, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_a_network_is_written_once_and_goes_with_its_reader(tmp_path: Path) -> None:
    model = family("bert", tmp_path)
    read(model)
    tower = readers._readers[model.network].tower
    read(model)
    assert readers._readers[model.network].tower is tower
    network = weakref.ref(model.network)
    del model, tower
    gc.collect()
    assert network() is None


def test_a_layer_that_was_replaced_is_used(tmp_path: Path) -> None:
    model = family("bert", tmp_path)
    before = read(model)
    for parameter in model.network.stack.blocks[0].parameters():
        parameter.data = parameter.data * 1.5
        break
    with torch.no_grad():
        next(model.network.stack.blocks[1].parameters()).mul_(1.5)
    after = read(model)
    assert not torch.allclose(before, after)
    with torch.inference_mode():
        expected = model.network.rows(torch.tensor(some_ids(sum(LENGTHS), vocabulary=100)), LENGTHS)
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=1e-4)


def test_an_owned_network_holds_its_weights_once_and_reads_on(tmp_path: Path) -> None:
    model = family("bert-classify", tmp_path)
    expected = run_rows(model, ROWS)
    assert own_reader(model)
    assert model.is_packed
    assert all(parameter.is_meta for parameter in model.network.stack.parameters() if parameter.dim() == 2)
    for num_threads in (1, 2):
        for ours, theirs in zip(run_rows(model, ROWS, num_threads=num_threads), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_what_the_kernels_do_not_know_is_read_by_torch(tmp_path: Path) -> None:
    model = family("mamba2-model", tmp_path)
    expected = run_rows(model, ROWS)
    assert not own_reader(model)
    assert read_tower(model.network, torch.tensor([1]), [1], torch.float32) is None
    for ours, theirs in zip(run_rows(model, ROWS), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_threads_that_read_one_model_at_once_all_get_their_own(tmp_path: Path) -> None:
    model = family("bert", tmp_path)
    expected = [read(model, [length]) for length in range(5, 13)]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            if not torch.equal(read(model, [5 + number]), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not wrong
