"""The loss against transformers: cross-entropy of shifted answer tokens, divided by their number once."""

from typing import Any

import pytest
import torch

from danlu.models.load import Model, load_model
from danlu.text.chat import RenderedChat
from danlu.train.loss import collate, summed_loss
from danlu.train.stages.sft import encode_rows

from ..models.peer import save_llama
from .chats import chats


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
    return summed_loss(model.decoder, batch) / batch.targets.shape[0]


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
    assert float(summed_loss(model.decoder, collate([row]))) == pytest.approx(-float(logprobs[2, 70]), rel=1e-4)


def test_any_split_into_batches_gives_the_same_mean(both: tuple[Model, Any]) -> None:
    """Summed, then divided by the number of all learnt tokens; the mean of means would weigh short rows more."""
    model, _ = both
    rows = rows_of(model)
    whole = float(mean_loss(model, rows))
    for size in (1, 2, 4):
        batches = [collate(rows[start : start + size]) for start in range(0, len(rows), size)]
        total = sum(float(summed_loss(model.decoder, batch)) for batch in batches)
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
    assert float(summed_loss(model.decoder, batch)) == 0.0
