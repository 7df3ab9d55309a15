"""What a recipe's training will take, from ten steps of it: speed, memory, time, energy, for a few ways to run it."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.flow.probe import Subject, perform

STEPS = 10
"""Steps of each trial."""
_WARM = 2
"""First steps that are not timed."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One way to run the stage."""

    name: str
    changes: dict[str, Any]
    """What differs from the recipe."""
    tokens_per_s: float
    seconds: float
    """Of the whole run, without loading and validation."""
    peak_bytes: int
    """Most memory of the process."""
    wh: float
    gco2: float
    energy_method: str


def estimate(subject: Subject) -> Iterator[Estimate]:
    """The recipe as it is, then with half and a quarter at once, then with activations computed again."""
    first = _try(subject, "as the recipe says", {})
    yield first
    tokens = getattr(subject.stage.config, "tokens_per_step", None)
    if tokens:
        yield _try(subject, "half a step at once", {"micro_tokens": max(1, tokens // 2)})
        yield _try(subject, "a quarter of a step at once", {"micro_tokens": max(1, tokens // 4)})
    yield _try(subject, "activations computed again", {"recompute": "full"})


def cheapest(found: list[Estimate], memory_bytes: int) -> Estimate | None:
    """The fastest way that needs at most ``memory_bytes``; None when none fits."""
    fitting = [one for one in found if one.peak_bytes <= memory_bytes]
    return min(fitting, key=lambda one: one.seconds, default=None)


def _try(subject: Subject, name: str, changes: dict[str, Any]) -> Estimate:
    with tempfile.TemporaryDirectory() as scratch:
        quiet = {"validate_every": 1_000_000, "save_every": 1_000_000}
        found = perform(
            subject.probe(
                Path(scratch) / "work", Path(scratch) / "answer.json", changes={**quiet, **changes}, steps=STEPS
            )
        )
    seconds, tokens = found["step_seconds"][_WARM:], found["step_tokens"][_WARM:]
    wh = found["wh_per_step"] * found["num_steps"]
    return Estimate(
        name=name,
        changes=changes,
        tokens_per_s=sum(tokens) / sum(seconds),
        seconds=statistics.fmean(seconds) * found["num_steps"],
        peak_bytes=found["peak_rss_bytes"],
        wh=wh,
        gco2=wh * found["grid_kg_per_kwh"],
        energy_method=found["energy_method"],
    )
