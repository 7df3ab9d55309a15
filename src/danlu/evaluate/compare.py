"""Two models on the same items: is the difference more than luck? Paired bootstrap (Koehn 2004)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from danlu.core import plugins
from danlu.core.errors import DataError
from danlu.core.files import read_json
from danlu.evaluate.metrics import RESAMPLES, bootstrap
from danlu.evaluate.run import read_samples
from danlu.evaluate.tasks import Task


def compare(baseline: Path, candidate: Path) -> dict[str, dict[str, Any]]:
    """For every metric: the difference candidate - baseline, its 95 % interval, one-sided p-values of "better" in
    either direction, and whether the candidate lies inside the baseline's own interval.

    ``p_higher`` is the chance of a resample in which the candidate is not higher. Both folders must hold answers to the
    same items of the same task version; DataError otherwise.
    """
    tasks = [_task_of(folder) for folder in (baseline, candidate)]
    if tasks[0] != tasks[1]:
        raise DataError(f"The evaluations are of {tasks[0]} and {tasks[1]}.", "Compare runs of one task version.")
    (examples, before), (others, after) = read_samples(baseline), read_samples(candidate)
    if examples != others:
        first = next((a.id for a, b in zip(examples, others, strict=False) if a != b), "(after the shorter one's end)")
        raise DataError(
            f"The evaluations hold different items ({len(examples)} and {len(others)}; first different: {first}).",
            "Use the same held-out rows.",
        )
    task: Task = plugins.load("evaluate.tasks", tasks[0]["name"])
    references = [e.reference for e in examples]
    compared: dict[str, dict[str, Any]] = {}
    for name, metric in task.metrics(examples).items():
        old, new = metric.counts(before, references), metric.counts(after, references)
        old_samples, new_samples = bootstrap(metric, old), bootstrap(metric, new)
        differences = new_samples - old_samples
        low, high = np.percentile(differences, [2.5, 97.5])
        value = metric.value(new.sum(axis=0))
        old_low, old_high = np.percentile(old_samples, [2.5, 97.5])
        compared[name] = {
            "difference": round(value - metric.value(old.sum(axis=0)), 6),
            "low": round(float(low), 6),
            "high": round(float(high), 6),
            "p_higher": (int((differences <= 0).sum()) + 1) / (RESAMPLES + 1),
            "p_lower": (int((differences >= 0).sum()) + 1) / (RESAMPLES + 1),
            "is_within_baseline": bool(old_low <= value <= old_high),
        }
    return compared


def _task_of(folder: Path) -> dict[str, Any]:
    """Name and version of the task that an evaluation's folder answers."""
    metrics = read_json(folder / "metrics.json")
    if not isinstance(metrics, dict) or "task" not in metrics:
        raise DataError(f"{folder} holds no evaluation.", "Compare the artifacts of two evaluate stages.")
    return metrics["task"]
