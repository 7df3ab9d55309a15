"""What recommenders are asked: which items come next after those a user had. Names in, names out; trains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.core.errors import ModelError, RequestError
from danlu.models.archs.recommender import BEGIN
from danlu.models.encode import PACK_TOKENS, packs
from danlu.models.heads.rank import RankHead, top_items
from danlu.models.model import Model


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One item for a user."""

    item: str
    """Its name."""
    probability: float
    """How likely it comes next among all items."""


def recommend(
    model: Model, histories: Sequence[Sequence[str]], count: int = 10, *, with_seen: bool = False
) -> list[list[Recommendation]]:
    """The ``count`` likeliest next items after each history (oldest item first), the likeliest first.

    Items of a history are not recommended again unless ``with_seen``. Those that the model does not know are passed
    over; an empty history is that of a new user, who gets what is liked in general. Of long histories only the last
    items count. Raises ModelError when the model ranks no items, RequestError when fewer than ``count`` are left.
    """
    names = item_names(model)
    if count < 1:
        raise RequestError(f"count is {count}.", "Ask for 1 item or more.")
    places = {name: number for number, name in enumerate(names, start=BEGIN)}
    known = [[places[item] for item in history if item in places] for history in histories]
    answers: list[list[Recommendation]] = [[] for _ in histories]
    for pack in packs([len(history) + 1 for history in known], PACK_TOKENS):
        some = [known[row] for row in pack]
        scores = next_scores(model, some)
        chances = scores.softmax(dim=-1)
        ids, _ = top_items(scores, count, None if with_seen else some)
        for row, found, chance in zip(pack, ids.tolist(), chances, strict=True):
            answers[row] = [Recommendation(names[i - BEGIN], float(chance[i])) for i in found]
    return answers


@torch.no_grad()
def next_scores(model: Model, histories: Sequence[Sequence[int]]) -> Tensor:
    """Histories as ids, oldest first → scores of all items as the next one: fp32 (B, V), reserved ids at -inf."""
    head = model.network.head
    if not isinstance(head, RankHead):
        raise ModelError("This model ranks no items.", "Train one with the rank stage.")
    rows = [begun(history, model.config.context_length) for history in histories]
    lengths = [len(row) for row in rows]
    ids = torch.tensor([index for row in rows for index in row], device=model.device)
    return head(model.network.rows(ids, lengths), lengths).float()


def begun(history: Sequence[int], places: int) -> list[int]:
    """A row of at most ``places`` ids: the beginning, then the last items."""
    return [0, *history[max(0, len(history) - (places - 1)) :]]


def item_names(model: Model) -> list[str]:
    """Names of the items in the order of their ids; ModelError when the model has none."""
    names = model.theirs.get("items")
    if not isinstance(names, list):
        raise ModelError("This model ranks no items.", "Train one with the rank stage.")
    return names
