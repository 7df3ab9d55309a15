"""Places and the scores made of them, by hand arithmetic."""

import math

import pytest
import torch

from danlu.models.model import Model
from danlu.models.recommend import next_scores, recommend
from danlu.train.histories import UNKNOWN, Case
from danlu.train.ranking import ranking_scores, ranks
from danlu.train.stages.rank import RecommenderConfig, new_recommender

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model() -> Model:
    made = new_recommender(RecommenderConfig(width=8, max_items=6), [str(n) for n in range(8)], seed=0)
    for weight in made.network.parameters():
        torch.nn.init.normal_(weight, std=0.5, generator=torch.Generator().manual_seed(weight.numel()))
    return made


def test_a_place_is_that_in_the_recommendations(model: Model) -> None:
    cases = [Case((1, 2), 5), Case((), 3), Case((8, 7, 6, 5, 4, 3), 1)]
    places, loss = ranks(model, cases)
    losses: list[float] = []
    for case, place in zip(cases, places, strict=True):
        (found,) = recommend(model, [[str(i - 1) for i in case.history]], 8 - len(case.history))
        assert found[int(place) - 1].item == str(case.target - 1)
        losses.append(-float(next_scores(model, [case.history])[0].log_softmax(-1)[case.target]))
    assert loss == pytest.approx(sum(losses) / 3)


def test_what_the_model_does_not_know_is_never_found(model: Model) -> None:
    places, loss = ranks(model, [Case((1,), UNKNOWN), Case((1,), 2)])
    assert places[0] == math.inf
    assert math.isfinite(loss)


def test_equal_scores_are_ordered_by_id(model: Model) -> None:
    for weight in model.network.parameters():
        torch.nn.init.zeros_(weight)
    assert ranks(model, [Case((1, 3), 2), Case((1, 3), 4), Case((), 8)])[0] == [1, 2, 8]


def test_scores_of_places() -> None:
    found = ranking_scores([1, 3, 11, math.inf], 2.5)
    assert found == pytest.approx(
        {"loss": 2.5, "hr_at_10": 0.5, "ndcg_at_10": (1 + 1 / 2) / 4, "mrr": (1 + 1 / 3 + 1 / 11) / 4}
    )
    assert ranking_scores([2], top=1) == pytest.approx({"hr_at_1": 0.0, "ndcg_at_1": 0.0, "mrr": 0.5})
