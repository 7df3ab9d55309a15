"""The loss against transformers: cross-entropy of shifted answer tokens, divided by their number once."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.text.chat import RenderedChat
from danlu.train.lora import LoraConfig, add_lora
from danlu.train.loss import collate, summed_loss
from danlu.train.stages.sft import encode_rows

from ..models.peer import save_llama, some_ids
from .chats import chats

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Any]:
    """The same weights, ours and theirs."""
    folder = tmp_path_factory.mktemp("peer")
    peer = save_llama(folder)
    return load_model(folder, precision="fp32"), peer


def rows_of(model: Model, count: int = 9) -> list[RenderedChat]:
    return encode_rows(chats(count), model.chat, 200).encoded


def mean_loss(model: Model, rows: list[RenderedChat]) -> torch.Tensor:
    batch = collate(rows)
    return summed_loss(model.network, batch) / batch.targets.shape[0]


def peer_loss(peer: Any, rows: list[RenderedChat]) -> torch.Tensor:
    """Right-padded, labels -100 where nothing is learnt: what everybody else computes."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (longest - len(row.ids)) for row in rows])
    labels = torch.full_like(ids, -100)
    for number, row in enumerate(rows):
        for place, learnt in enumerate(row.is_answer):
            if learnt:
                labels[number, place] = row.ids[place]
    attention = torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows])
    return peer(input_ids=ids, attention_mask=attention, labels=labels).loss


def test_the_mean_loss_equals_that_of_transformers(both: tuple[Model, Any]) -> None:
    model, peer = both
    for rows in (rows_of(model)[:1], rows_of(model)):
        assert float(mean_loss(model, rows)) == pytest.approx(float(peer_loss(peer, rows).detach()), rel=1e-5)


def test_the_loss_of_one_token_is_its_negative_log_probability(both: tuple[Model, Any]) -> None:
    model, peer = both
    ids = [1, 50, 60, 70, 80]
    row = RenderedChat(ids, [False, False, False, True, False])
    with torch.no_grad():
        logprobs = torch.log_softmax(peer(torch.tensor([ids])).logits[0], dim=-1)
    assert float(summed_loss(model.network, collate([row]))) == pytest.approx(-float(logprobs[2, 70]), rel=1e-4)


def test_any_split_into_batches_gives_the_same_mean(both: tuple[Model, Any]) -> None:
    """Summed, then divided by the number of all learnt tokens; the mean of means would weigh short rows more."""
    model, _ = both
    rows = rows_of(model)
    whole = float(mean_loss(model, rows))
    for size in (1, 2, 4):
        batches = [collate(rows[start : start + size]) for start in range(0, len(rows), size)]
        total = sum(float(summed_loss(model.network, batch)) for batch in batches)
        assert total / sum(batch.targets.shape[0] for batch in batches) == pytest.approx(whole, rel=1e-5)


def test_end_tokens_are_learnt_although_they_may_pad(both: tuple[Model, Any]) -> None:
    """Masks come from lengths, never from ids: a padding id that is also the end token must not hide it."""
    model, _ = both
    (end,) = model.chat.tokenizer.end_ids
    rows = rows_of(model)
    assert collate(rows).targets.tolist().count(end) == len(rows)
    quoting = {"messages": [{"role": "user", "content": "<|im_end|>"}, *chats(1)[0]["messages"]]}
    asked = encode_rows([quoting], model.chat, 99)
    assert collate(asked.encoded).targets.tolist().count(end) == 1


def test_a_batch_without_anything_to_learn_has_no_loss(both: tuple[Model, Any]) -> None:
    model, _ = both
    batch = collate([RenderedChat([1, 2, 3], [True, False, False])])
    assert batch.targets.shape == (0,)
    assert float(summed_loss(model.network, batch)) == 0.0


# ---- rows packed into one batch have the loss and the gradient of each row alone, whatever they share ----------------


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
    return summed_loss(model.network, collate(rows))


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
