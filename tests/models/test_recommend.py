"""Recommendations by name: the head's own order, nothing that was had already, and something for everybody."""

from pathlib import Path

import pytest
import torch

import danlu
from danlu.core.errors import ModelError, RequestError
from danlu.models.loaded import LoadedModel
from danlu.models.model import Model
from danlu.models.recommend import Recommendation, next_scores, recommend
from danlu.models.save import save_model
from danlu.train.stages.rank import RecommenderConfig, new_recommender

pytestmark = pytest.mark.usefixtures("one_thread")

ITEMS = [f"film {n}" for n in range(9)]


@pytest.fixture
def model() -> Model:
    made = new_recommender(RecommenderConfig(width=8, max_items=5), ITEMS, seed=1)
    for weight in made.network.parameters():
        torch.nn.init.normal_(weight, std=0.4, generator=torch.Generator().manual_seed(weight.numel()))
    return made


def names(found: list[Recommendation]) -> list[str]:
    return [one.item for one in found]


def test_items_come_by_their_scores_with_their_share_of_a_softmax(model: Model) -> None:
    (found,) = recommend(model, [["film 3", "film 0"]], 9, with_seen=True)
    chances = next_scores(model, [[4, 1]])[0].softmax(dim=-1)
    order = chances[1:].argsort(descending=True).tolist()
    assert names(found) == [ITEMS[i] for i in order]
    assert [one.probability for one in found] == pytest.approx([float(chances[1 + i]) for i in order])
    assert sum(one.probability for one in found) == pytest.approx(1.0)


def test_what_a_user_had_is_not_recommended_again(model: Model) -> None:
    history = ["film 3", "film 0"]
    (all_of_them,), (found,) = recommend(model, [history], 9, with_seen=True), recommend(model, [history], 7)
    assert names(found) == [name for name in names(all_of_them) if name not in history]


def test_an_unknown_item_says_nothing_and_a_new_user_gets_something(model: Model) -> None:
    known, mixed, nothing, unknown = recommend(model, [["film 3"], ["x", "film 3"], [], ["x"]], 3)
    assert mixed == known
    assert unknown == nothing
    assert len(nothing) == 3


def test_answers_do_not_depend_on_who_asks_beside(model: Model) -> None:
    histories = [["film 1"], [], ["film 2", "film 5", "film 7"], ["film 8", "film 4"]]
    together = recommend(model, histories, 4)
    for history, found in zip(histories, together, strict=True):
        (alone,) = recommend(model, [history], 4)
        assert names(alone) == names(found)


def test_only_the_last_items_of_a_long_history_are_read(model: Model) -> None:
    torch.testing.assert_close(next_scores(model, [[1, 2, 3, 4, 5, 6]]), next_scores(model, [[3, 4, 5, 6]]))


def test_a_saved_recommender_answers_through_load(model: Model, tmp_path: Path) -> None:
    save_model(model, tmp_path / "m")
    loaded = danlu.load(tmp_path / "m", precision="fp32")
    assert isinstance(loaded, LoadedModel)
    found, expected = loaded.recommend([["film 3"]], 5)[0], recommend(model, [["film 3"]], 5)[0]
    assert names(found) == names(expected)
    assert [one.probability for one in found] == pytest.approx([one.probability for one in expected], rel=1e-5)


def test_what_cannot_be_answered_is_refused(model: Model, tiny_folder: Path) -> None:
    with pytest.raises(RequestError, match="8 items were asked for, 7 are left"):
        recommend(model, [["film 3", "film 0"]], 8)
    with pytest.raises(RequestError, match="count is 0"):
        recommend(model, [[]], 0)
    writer = danlu.load(tiny_folder, precision="fp32")
    assert isinstance(writer, LoadedModel)
    with pytest.raises(ModelError, match=r"recommends nothing: it has a head of kind LM\. Load a model .* kind Rank"):
        writer.recommend([[]])
    with pytest.raises(ModelError, match=r"This model ranks no items\. Train one with the rank stage"):
        recommend(writer.model, [[]])
