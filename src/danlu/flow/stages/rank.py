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
from danlu.flow.training import Training, TrainingStage
from danlu.lineage.stage import StageContext
from danlu.models.save import save_model
from danlu.train.audit_histories import audit_histories
from danlu.train.findings import report
from danlu.train.histories import FIRST, Histories, HistoryColumns, read_histories, windows
from danlu.train.ranking import ranking_scores
from danlu.train.stages.rank import RecommenderConfig, new_recommender, train

NEIGHBOURS = (20, 50, 100, 200, 1000)
"""Numbers of neighbours that the item-kNN baseline may choose from."""


@dataclass(frozen=True, kw_only=True)
class RankStageConfig(RecommenderConfig):
    """Train a recommender from a table."""

    columns: HistoryColumns = field(default_factory=HistoryColumns)
    """What the columns of the table are called."""
    min_rating: float | None = None
    """Rows rated lower are left out and counted; null takes every row as a sign of interest."""


class Rank(TrainingStage[RankStageConfig]):
    """The plugin."""

    config_type = RankStageConfig
    version = 1
    inputs: Mapping[str, str] = {"data": "one table with user, item, time and perhaps rating: Parquet, JSONL or CSV"}

    def run(self, config: RankStageConfig, context: StageContext) -> dict[str, Any]:
        training = Training(context, "Recommendation", config)
        table = read_rows(_only_file(context.inputs["data"])).table
        require_columns(table, [config.columns.user, config.columns.item, config.columns.time])
        found = read_histories(table.to_pylist(), config.columns, min_rating=config.min_rating)
        told = report(audit_histories(found), config.audit, context.events)
        model = new_recommender(config, found.items, context.seed)
        rows = windows(found.train, config.max_items)
        metrics = train(model, rows, found.validation, config, training.job, test_rows=found.test)
        if training.job.world.is_first:
            save_model(model, context.output)
        others = baselines(found) if found.test and training.job.world.is_first else {}
        return training.finish({**metrics, **found.counts, **others}, told)


def baselines(found: Histories) -> dict[str, Any]:
    """What the model has to beat on the test cases; the number of neighbours is the best one on validation cases."""
    num_ids = FIRST + len(found.items)
    watched, cases = ([(case.history, case.target) for case in some] for some in (found.validation, found.test))
    popular = ranking_scores(places(Popularity(found.train, num_ids), cases))
    tried = {count: ItemKnn(found.train, num_ids, neighbours=count) for count in NEIGHBOURS}
    best = max(tried, key=lambda count: ranking_scores(places(tried[count], watched))["ndcg_at_10"])
    near = ranking_scores(places(tried[best], cases))
    return {"test_popularity": popular, "test_item_knn": {**near, "neighbours": best}}


def _only_file(folder: Path) -> Path:
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != "manifest.json")
    if len(files) != 1:
        raise DataError(f"{folder} holds {len(files)} files.", "Give the table as one file.")
    return files[0]


plugin = Rank()
