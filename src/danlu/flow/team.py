"""A recipe in several processes: the first one makes and records everything, the others join it where it trains.

Started by ``danlu train --nproc N`` or by torchrun on several machines that see one store. The first process tells the
others, stage by stage, what was made; stages that train run in all of them at once. Knows no method.
"""

from __future__ import annotations

import tempfile
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.core.events import Events
from danlu.flow.recipe import Recipe, Stage
from danlu.lineage.stage import StageContext
from danlu.lineage.store import Artifact, Store

if TYPE_CHECKING:
    from danlu.train.world import World

TEAM: ContextVar[World | None] = ContextVar("team", default=None)
"""The processes that run a recipe together; None for one alone."""


def tell_training(context: StageContext) -> None:
    """Call the others to a training stage that starts now (the first process)."""
    world = TEAM.get()
    if world is not None and world.size > 1:
        world.share_json({"work": str(context.work)})


def tell_made(artifact: Artifact) -> None:
    """Tell the others what was made (the first process)."""
    world = TEAM.get()
    if world is not None and world.size > 1:
        world.share_json({"artifact": artifact.id})


def follow(recipe: Recipe, store: Store, world: World) -> None:
    """What every process but the first does: train along, and take everything else as it is made."""
    artifacts: dict[str, Artifact] = {}
    for stage in recipe.stages:
        if stage.plugin.service:
            return
        inputs = {key: artifacts[name] for key, name in stage.inputs.items()}
        told: dict[str, Any] = world.share_json(None)
        if "work" in told:
            with tempfile.TemporaryDirectory() as scratch:
                _join(stage, recipe, store, inputs, Path(told["work"]), Path(scratch))
            told = world.share_json(None)
        artifacts[stage.name] = store.get(told["artifact"])


def _join(
    stage: Stage, recipe: Recipe, store: Store, inputs: dict[str, Artifact], work: Path, scratch: Path
) -> None:  # fmt: skip
    context = StageContext(
        inputs={key: artifact.path for key, artifact in inputs.items()},
        output=scratch,
        work=work,
        seed=recipe.seed if stage.plugin.uses_seed else 0,
        events=Events(),
        store=store,
        artifacts=inputs,
    )
    stage.plugin.run(stage.config, context)
