"""The numbers of a finished run as one JSON file, chosen by the recipe.

    summary:
      path: quickstart.json
      values:
        rows_in: data.rows_in          # stage, then the path inside its metrics
        tuned: tuned_scores            # all of a stage's metrics

Every summary also has ``run``, ``seconds`` of each stage (of making it, also when it was reused) and
``peak_rss_bytes`` (of the run itself; a run that reused everything keeps the earlier file's).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from danlu.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from danlu.flow.run import RunResult


def summarise(result: RunResult, values: Mapping[str, str]) -> dict[str, Any]:
    """The chosen values; ConfigError naming the closest metric when a path leads nowhere."""
    manifests = {name: artifact.manifest for name, artifact in result.artifacts.items()}
    metrics = {name: manifest.metrics for name, manifest in manifests.items()}
    return {
        **{key: _follow(metrics, key, path) for key, path in values.items()},
        "run": result.id,
        "artifacts": {name: manifest.id for name, manifest in manifests.items()},
        "seconds": {name: manifest.cost.seconds for name, manifest in manifests.items()},
        "peak_rss_bytes": result.record.peak_rss_bytes,
    }


def _follow(metrics: Mapping[str, Any], key: str, path: str) -> Any:
    value: Any = metrics
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            known = value if isinstance(value, Mapping) else {}
            raise ConfigError(f"summary.values.{key} is '{path}': there is no '{part}'.", nearest(part, known))
        value = value[part]
    return value
