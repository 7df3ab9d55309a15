"""How well a recommender ranks: the place of what came next among all items. Knows no training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from danlu.models.encode import PACK_TOKENS, packs
from danlu.models.model import Model
from danlu.models.recommend import next_scores
from danlu.train.histories import UNKNOWN, Case


@torch.no_grad()
def ranks(model: Model, cases: Sequence[Case]) -> tuple[list[float], float]:
    """Place of each target among all items that are not in its history, from 1, infinite for unknown ones; and the mean
    loss in nats of the known ones. Equal scores are ordered by id, as in recommendations."""
    places, losses = [math.inf] * len(cases), list[float]()
    for pack in packs([len(case.history) + 1 for case in cases], PACK_TOKENS):
        scores = next_scores(model, [cases[row].history for row in pack])
        logprobs = scores.log_softmax(dim=-1)
        for row, mine, logprob in zip(pack, scores, logprobs, strict=True):
            case = cases[row]
            if case.target == UNKNOWN:
                continue
            losses.append(-float(logprob[case.target]))
            mine[list(case.history)] = -torch.inf
            ahead = (mine > mine[case.target]).sum() + (mine[: case.target] == mine[case.target]).sum()
            places[row] = 1.0 + float(ahead)
    return places, sum(losses) / max(1, len(losses))


def ranking_scores(places: Sequence[float], loss: float | None = None, top: int = 10) -> dict[str, float]:
    """Places from 1 → share among the first ``top`` (HR), gain discounted by place (NDCG) and mean reciprocal rank."""
    gains = [1.0 / math.log2(place + 1) if place <= top else 0.0 for place in places]
    found = {
        f"hr_at_{top}": sum(place <= top for place in places) / len(places),
        f"ndcg_at_{top}": sum(gains) / len(places),
        "mrr": sum(1.0 / place for place in places) / len(places),
    }
    return found if loss is None else {"loss": loss, **found}
