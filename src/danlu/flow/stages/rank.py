"""Train a recommender on what users did (train/stages/rank): makes a model folder, its curve, and what it had to beat.

Ranks are among all items, none drawn: the last item of each user after all before it, items already had left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from danlu.core.errors import DataError
from danlu.data.sources.files import read_rows, require_columns
from danlu.evaluate.recommend import ItemKnn, Popularity, places
from danlu.flow.recipe import RecipeStage
from danlu.flow.training import Training
from danlu.lineage.stage import StageContext
from danlu.models.save import save_model
from danlu.train.histories import FIRST, HistoryColumns, read_histories, windows
from danlu.train.stages.rank import RecommenderConfig, new_recommender, ranking_scores, ranks, train


@dataclass(frozen=True, kw_only=True)
class RankStageConfig(RecommenderConfig):
    """Train a recommender from a table."""

    columns: HistoryColumns = field(default_factory=HistoryColumns)
    """What the columns of the table are called."""
    min_rating: float | None = None
    """Rows rated lower are left out and counted; null takes every row as a sign of interest."""


class Rank(RecipeStage[RankStageConfig]):
    """The plugin."""

    config_type = RankStageConfig
    version = 1
    kind = "model"
    trains = True
    inputs: Mapping[str, str] = {"data": "one table with user, item, time and perhaps rating: Parquet, JSONL or CSV"}

    def run(self, config: RankStageConfig, context: StageContext) -> dict[str, Any]:
        training = Training(context, "Recommendation", config)
        table = read_rows(_only_file(context.inputs["data"])).table
        require_columns(table, [config.columns.user, config.columns.item, config.columns.time])
        found = read_histories(table.to_pylist(), config.columns, min_rating=config.min_rating)
        model = new_recommender(config, found.items, context.seed)
        metrics = train(model, windows(found.train, config.max_items), found.validation, config, training.job)
        if training.job.world.is_first:
            save_model(model, context.output)
        test: dict[str, Any] = {}
        if found.test:
            cases, num_ids = [(case.history, case.target) for case in found.test], FIRST + len(found.items)
            test = {
                "test": ranking_scores(*ranks(model, found.test)),
                "test_popularity": ranking_scores(places(Popularity(found.train, num_ids), cases)),
                "test_item_knn": ranking_scores(places(ItemKnn(found.train, num_ids), cases)),
            }
        return training.finish({**metrics, **found.counts, **test})


def _only_file(folder: Path) -> Path:
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != "manifest.json")
    if len(files) != 1:
        raise DataError(f"{folder} holds {len(files)} files.", "Give the table as one file.")
    return files[0]


plugin = Rank()
