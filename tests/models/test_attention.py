"""Rows packed into one batch behave like each row alone: what attention, positions and shared beginnings promise."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from danlu.models.load import Model, load_model
from danlu.text.chat import RenderedChat
from danlu.train.lora import LoraConfig, add_lora
from danlu.train.loss import collate, summed_loss

from .peer import some_ids

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    return load_model(tiny_folder, precision="fp32")


def row(ids: list[int], prompt: int) -> RenderedChat:
    """A conversation whose first ``prompt`` tokens are not learnt."""
    return RenderedChat(ids, [i >= prompt for i in range(len(ids))])


def rows_with_a_beginning(beginning: int, lengths: list[int]) -> list[RenderedChat]:
    start = some_ids(beginning, seed=99)
    return [row(start + some_ids(length, seed=length + i), beginning + 1) for i, length in enumerate(lengths)]


def loss_of(model: Model, rows: list[RenderedChat]) -> torch.Tensor:
    return summed_loss(model.decoder, collate(rows))


CASES = [
    rows_with_a_beginning(0, [5]),
    rows_with_a_beginning(0, [3, 30, 2, 17]),
    rows_with_a_beginning(20, [8, 8, 8]),
    rows_with_a_beginning(20, [2, 40, 11]),
    [*rows_with_a_beginning(20, [5, 5]), row(some_ids(12, seed=7), 4)],
    [row(some_ids(30), 10), row(some_ids(30), 10)],
    [row(some_ids(30), 10), row(some_ids(30)[:20], 10)],
    [row(some_ids(300), 280), row(some_ids(300)[:290] + some_ids(400, seed=3), 280)],
]
NAMES = ["one", "ragged", "shared", "shared-ragged", "partly-shared", "equal", "one-begins-another", "long"]


@pytest.mark.parametrize("rows", CASES, ids=NAMES)
def test_packed_rows_have_the_loss_of_each_row_alone(model: Model, rows: list[RenderedChat]) -> None:
    alone = sum(float(loss_of(model, [r])) for r in rows)
    assert float(loss_of(model, rows)) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("rows", CASES, ids=NAMES)
def test_packed_rows_give_the_gradient_of_each_row_alone(tiny_folder: Path, rows: list[RenderedChat]) -> None:
    model = load_model(tiny_folder, precision="fp32")
    torch.manual_seed(0)
    parameters = add_lora(model, LoraConfig(rank=3))
    for parameter in parameters:
        torch.nn.init.normal_(parameter, std=0.1)

    def gradients(batches: list[list[RenderedChat]]) -> list[torch.Tensor]:
        for batch in batches:
            loss_of(model, batch).backward()
        found = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            parameter.grad = None
        assert len(found) == len(parameters)
        return found

    packed, alone, swapped = gradients([rows]), gradients([[r] for r in rows]), gradients([rows[::-1]])
    for together, apart, other in zip(packed, alone, swapped, strict=True):
        assert (together - apart).norm() <= 1e-4 * apart.norm()
        assert (together - other).norm() <= 1e-4 * apart.norm()


def test_what_one_row_says_changes_no_other_row(model: Model) -> None:
    """A perturbation test: gradients of one row's loss with respect to another row's tokens are zero."""
    rows = rows_with_a_beginning(0, [9, 12, 6])
    before = [float(loss_of(model, rows)) - float(loss_of(model, rows[:1] + rows[2:]))]
    other = [row(some_ids(9, seed=50), 1), rows[1], row(some_ids(6, seed=51), 1)]
    after = [float(loss_of(model, other)) - float(loss_of(model, other[:1] + other[2:]))]
    assert before == pytest.approx(after, rel=1e-4)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    beginning=st.integers(0, 24),
    tails=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=5),
)
def test_any_rows_pack_without_changing_their_loss(model: Model, beginning: int, tails: list[list[int]]) -> None:
    """Few different tokens, so that rows often begin alike by chance, or are equal."""
    start = some_ids(beginning, seed=5)
    rows = [row([2, *start, *tail], 1 + beginning // 2) for tail in tails]
    alone = sum(float(loss_of(model, [r])) for r in rows)
    assert float(loss_of(model, rows)) == pytest.approx(alone, rel=1e-4, abs=1e-4)


def test_a_batch_counts_the_tokens_of_all_its_rows() -> None:
    for rows in CASES:
        batch = collate(rows)
        assert batch.num_tokens == sum(len(r.ids) for r in rows)
        assert batch.targets.shape[0] == sum(sum(r.is_answer[1:]) for r in rows)


def test_a_batch_predicts_each_learnt_token_from_the_one_before_it() -> None:
    rows = [RenderedChat([5, 6, 7, 8], [True, False, True, True]), RenderedChat([9, 10], [False, True])]
    batch = collate(rows)
    pairs = list(zip(batch.ids[batch.predicts].tolist(), batch.targets.tolist(), strict=True))
    assert pairs == [(6, 7), (7, 8), (9, 10)]  # the first token of a row has nothing before it


def test_rows_of_one_batch_may_come_in_any_order(model: Model) -> None:
    rows = rows_with_a_beginning(20, [2, 9, 5])
    losses = [float(loss_of(model, list(order))) for order in itertools.permutations(rows)]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-5)
