"""Ranking items, by hand arithmetic and inside a network."""

import pytest
import torch

from danlu.core.errors import ModelError, RequestError
from danlu.models.attention import AttentionConfig
from danlu.models.block import LayerConfig, StackConfig
from danlu.models.feedforward import FeedForwardConfig
from danlu.models.heads.rank import RankConfig, RankHead, top_items
from danlu.models.inputs.tokens import TokensConfig
from danlu.models.network import ModelConfig, TowerConfig
from danlu.models.norms import NormConfig

ITEMS = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]])


@pytest.fixture
def head() -> RankHead:
    head = RankConfig(vocabulary_size=5).make(2)
    head.linear.weight = torch.nn.Parameter(ITEMS.clone())
    return head.requires_grad_(False)


def test_scores_are_products_of_the_last_state_with_each_item(head: RankHead) -> None:
    hidden = torch.tensor([[5.0, 5.0], [2.0, 1.0], [1.0, -3.0]])  # a row of two and a row of one
    expected = [[-torch.inf, 2.0, 1.0, 3.0, -2.0], [-torch.inf, 1.0, -3.0, -2.0, -1.0]]
    assert head(hidden, [2, 1]).tolist() == expected


def test_the_best_items_come_first_and_seen_ones_never(head: RankHead) -> None:
    scores = head(torch.tensor([[2.0, 1.0], [1.0, -3.0]]), [1, 1])
    ids, values = top_items(scores, 2)
    assert (ids.tolist(), values.tolist()) == ([[3, 1], [1, 4]], [[3.0, 2.0], [1.0, -1.0]])
    ids, values = top_items(scores, 2, seen=[[3], [1, 4]])
    assert (ids.tolist(), values.tolist()) == ([[1, 2], [3, 2]], [[2.0, 1.0], [-2.0, -3.0]])


def test_equal_scores_are_ordered_by_id() -> None:
    assert top_items(torch.tensor([[1.0, 2.0, 2.0, 1.0]]), 4)[0].tolist() == [[1, 2, 0, 3]]


def test_asking_for_more_than_is_left_is_refused(head: RankHead) -> None:
    scores = head(torch.tensor([[2.0, 1.0]]), [1])
    with pytest.raises(RequestError, match="3 items were asked for, 2 are left"):
        top_items(scores, 3, seen=[[1, 2]])


def test_a_table_without_items_is_refused() -> None:
    with pytest.raises(ModelError, match="2 of 2 item ids are reserved"):
        RankConfig(vocabulary_size=2, reserved=2)


def test_a_recommender_learns_a_cycle_with_one_table_for_both_ends() -> None:
    torch.manual_seed(0)
    attention = AttentionConfig(num_heads=2, num_kv_heads=2, head_width=8)
    layer = LayerConfig(mixer=attention, feedforward=FeedForwardConfig(width=32, gated=False))
    config = ModelConfig(
        tower=TowerConfig(
            input=TokensConfig(vocabulary_size=7, width=16, positions="learned", num_positions=8),
            stack=StackConfig(width=16, layers=(layer,), norm=NormConfig(kind="layer", bias=True), context_length=8),
        ),
        head=RankConfig(vocabulary_size=7),
    )
    network = config.make()
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    assert isinstance(network.head, RankHead)
    assert network.head.linear.weight is network.embedding.get_parameter("tokens.weight")
    rows = torch.tensor([[1 + (start + step) % 6 for step in range(5)] for start in range(6)])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    scores = torch.empty(0)
    for _ in range(60):
        optimizer.zero_grad()
        scores = network.head(network.rows(rows[:, :4].flatten(), [4] * 6), [4] * 6)
        torch.nn.functional.cross_entropy(scores, rows[:, 4]).backward()
        optimizer.step()
    assert top_items(scores.detach(), 1)[0].flatten().tolist() == rows[:, 4].tolist()
