"""Contrastive losses: torch's and transformers' numbers, false negatives, and micro-batches that change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, triplet_margin_with_distance_loss
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from danlu.train.losses.contrastive import (
    cosine_loss,
    cosines,
    false_negatives,
    info_nce,
    loss_and_gradients,
    matryoshka,
    nce_of_logits,
    sigmoid_of_logits,
    triplet_loss,
    with_gradient,
)

B, P = 4, 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


QUERIES, DOCUMENTS, HARD = normal(B, P, seed=1), normal(B, P, seed=2), normal(3, P, seed=3)


# ---- known answers ---------------------------------------------------------------------------------------------------


def test_each_query_is_told_its_document_from_all_others() -> None:
    documents = torch.cat([DOCUMENTS, HARD])
    logits = cosine_similarity(QUERIES[:, None], documents[None], dim=-1) / 0.05
    torch.testing.assert_close(info_nce(QUERIES, documents), cross_entropy(logits, torch.arange(B), reduction="sum"))


def test_both_ways_it_is_the_loss_of_clip() -> None:
    logits = cosines(QUERIES, DOCUMENTS) * 10
    torch.testing.assert_close(nce_of_logits(logits) / B, image_text_contrastive_loss(logits))
    torch.testing.assert_close(info_nce(QUERIES, DOCUMENTS, temperature=0.1, both_ways=True), nce_of_logits(logits))


def test_hard_negatives_are_for_queries_only() -> None:
    documents = torch.cat([DOCUMENTS, HARD])
    one_way = info_nce(QUERIES, documents)
    other_way = info_nce(DOCUMENTS, QUERIES)
    torch.testing.assert_close(info_nce(QUERIES, documents, both_ways=True), (one_way + other_way) / 2)


def test_each_pair_for_itself_is_the_loss_of_siglip() -> None:
    logits = cosines(QUERIES, DOCUMENTS) * 10 - 5
    signs = -torch.ones_like(logits) + 2 * torch.eye(B)
    torch.testing.assert_close(
        sigmoid_of_logits(logits) / B, -torch.nn.functional.logsigmoid(signs * logits).sum(-1).mean()
    )


def test_the_triplet_loss_is_that_of_torch() -> None:
    expected = triplet_margin_with_distance_loss(
        QUERIES, DOCUMENTS, normal(B, P, seed=5), margin=0.5, reduction="sum",
        distance_function=lambda a, b: 1 - cosine_similarity(a, b),
    )  # fmt: skip
    torch.testing.assert_close(triplet_loss(QUERIES, DOCUMENTS, normal(B, P, seed=5), margin=0.5), expected)


def test_known_likenesses_are_met() -> None:
    scores = torch.tensor([1.0, 0.0, -1.0, 0.5], dtype=torch.float64)
    expected = ((cosine_similarity(QUERIES, DOCUMENTS) - scores) ** 2).sum()
    torch.testing.assert_close(cosine_loss(QUERIES, DOCUMENTS, scores), expected)


def test_the_first_numbers_of_a_vector_are_useful_alone() -> None:
    found = matryoshka(info_nce, QUERIES, DOCUMENTS, dims=(2, 6), weights=(0.5, 1.0))
    torch.testing.assert_close(found, 0.5 * info_nce(QUERIES[:, :2], DOCUMENTS[:, :2]) + info_nce(QUERIES, DOCUMENTS))
    torch.testing.assert_close(matryoshka(info_nce, QUERIES, DOCUMENTS, dims=(6,)), info_nce(QUERIES, DOCUMENTS))


# ---- false negatives -------------------------------------------------------------------------------------------------


def test_equal_texts_are_not_told_apart() -> None:
    queries, documents = (
        ["capital?", "river?", "capital?", "sea?"],
        ["Paris", "Seine", "Lyon", "Seine", "Paris", "Oslo"],
    )
    found = false_negatives(queries, documents)
    places = {(row, column) for row, column in found.nonzero().tolist()}
    assert places == {(0, 2), (0, 4), (1, 3), (2, 0), (2, 4), (3, 1)}


def test_what_is_not_counted_has_no_gradient() -> None:
    documents = DOCUMENTS.clone().requires_grad_()
    ignored = torch.zeros(B, B, dtype=torch.bool)
    ignored[:, 2] = True
    info_nce(QUERIES[:2], documents, ignored=ignored[:2]).backward()
    assert documents.grad is not None
    assert documents.grad[2].abs().sum() == 0
    assert documents.grad[3].abs().sum() > 0


def test_a_querys_own_document_always_counts() -> None:
    ignored = torch.ones(B, B, dtype=torch.bool)
    assert info_nce(QUERIES, DOCUMENTS, ignored=ignored).item() == pytest.approx(0.0, abs=1e-12)
    logits = cosines(QUERIES, DOCUMENTS)
    expected = -torch.nn.functional.logsigmoid(logits.diagonal()).sum()
    torch.testing.assert_close(sigmoid_of_logits(logits, ignored=ignored), expected)


def test_a_copy_of_a_document_does_not_change_the_loss_when_it_is_ignored() -> None:
    names = ["a", "b", "c", "d"]
    ignored = false_negatives(names, [*names, "b"])[1:2]
    more = torch.cat([DOCUMENTS[1:], DOCUMENTS[:1], DOCUMENTS[1:2]])
    order = torch.tensor([1, 2, 3, 0, 4])
    torch.testing.assert_close(
        info_nce(QUERIES[1:2], more, ignored=ignored[:, order]), info_nce(QUERIES[1:2], more[:4])
    )


# ---- micro-batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[4], [1, 3], [2, 2], [1, 1, 1, 1]], ids=str)
def test_a_split_into_micro_batches_changes_no_gradient(sizes: list[int]) -> None:
    network, texts, answers = nn.Linear(3, P).double(), normal(B, 3, seed=7), normal(B, 3, seed=8)
    scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def loss(queries: Tensor, documents: Tensor) -> Tensor:
        return nce_of_logits(cosines(queries, documents) * scale.exp())

    whole = loss(network(texts), network(answers))
    whole.backward()
    expected = [p.grad.clone() for p in (*network.parameters(), scale) if p.grad is not None]
    for parameter in (*network.parameters(), scale):
        parameter.grad = None

    with torch.no_grad():
        vectors = network(texts), network(answers)
    total, gradients = loss_and_gradients(loss, *vectors)
    torch.testing.assert_close(total, whole.detach())
    for rows, gradient in zip((texts, answers), gradients, strict=True):
        for some, share in zip(rows.split(sizes), gradient.split(sizes), strict=True):
            with_gradient(network(some), share).backward()
    found = [p.grad for p in (*network.parameters(), scale)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


LOSSES: dict[str, Any] = {
    "info_nce": lambda q, d: info_nce(q, torch.cat([d, HARD]), ignored=torch.eye(B, B + 3).bool().roll(1, 1)),
    "clip": lambda q, d: info_nce(q, d, both_ways=True, temperature=0.5),
    "siglip": lambda q, d: sigmoid_of_logits(cosines(q, d) * 3 - 1),
    "triplet": lambda q, d: triplet_loss(q, d, normal(B, P, seed=9), margin=2.5),
    "cosine": lambda q, d: cosine_loss(q, d, torch.full((B,), 0.3)),
    "matryoshka": lambda q, d: matryoshka(info_nce, q, d, dims=(2, 4, 6)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_small_steps(name: str) -> None:
    assert torch.autograd.gradcheck(
        LOSSES[name], (QUERIES.clone().requires_grad_(), DOCUMENTS.clone().requires_grad_())
    )
