"""A few steps of a recipe's training stage in processes of their own: what ``danlu train check`` and ``plan`` look at.

The stage is the recipe's own, with some settings changed, and leaves nothing behind. Knows no method.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.core.config import from_mapping, to_mapping
from danlu.core.errors import ConfigError, TrainError, nearest
from danlu.core.events import Display, Events
from danlu.core.files import read_json, write_json
from danlu.flow.recipe import Recipe, Stage, load_recipe
from danlu.flow.run import run
from danlu.flow.team import TEAM
from danlu.lineage.stage import StageContext
from danlu.lineage.store import Store

if TYPE_CHECKING:
    from danlu.train.run import TrainingRun

FEW = 8
"""Steps of a probe unless asked otherwise."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What one process is to do; travels as JSON."""

    recipe: str
    """The recipe file."""
    overrides: tuple[str, ...]
    """Its overrides."""
    stage: str
    """The training stage."""
    store: str
    """The store's folder."""
    inputs: dict[str, str]
    """Input name to artifact id."""
    work: str
    """Folder of checkpoints; the same again goes on."""
    answer: str
    """File the result goes to."""
    changes: dict[str, Any] = field(default_factory=dict[str, Any])
    """Settings to change for the probe."""
    steps: int = FEW
    """Steps after which to end."""
    kill_after: int | None = None
    """Step after which the process kills itself with SIGKILL."""
    gradients: str | None = None
    """File for the first step's gradient; the probe ends with it."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A training stage with everything before it made."""

    recipe: Recipe
    stage: Stage
    store: Store
    inputs: Mapping[str, str]
    """Input name to artifact id."""

    def probe(self, work: Path, answer: Path, **wanted: Any) -> Probe:
        """A probe of this stage."""
        return Probe(
            recipe=str(self.recipe.path),
            overrides=self.recipe.overrides,
            stage=self.stage.name,
            store=str(self.store.root),
            inputs=dict(self.inputs),
            work=str(work),
            answer=str(answer),
            **wanted,
        )


def find_subject(
    path: Path, overrides: Sequence[str], store: Store, display: Display | None, stage: str | None = None
) -> Subject:
    """Make all that the recipe's training stage needs; ``stage`` names one where there are several."""
    recipe = load_recipe(path, overrides)
    training = {one.name: one for one in recipe.stages if one.plugin.trains}
    if not training:
        raise ConfigError(f"{path} has no stage that trains.", "Give a recipe with one, such as sft.")
    if stage is not None and stage not in training:
        raise ConfigError(f"'{stage}' is not a training stage of {path}.", nearest(stage, training))
    chosen = training[stage] if stage is not None else next(iter(training.values()))
    made = run(path, *overrides, store=store, display=display, until=chosen.name)
    inputs = {key: made.artifacts[name].id for key, name in chosen.inputs.items()}
    return Subject(recipe=recipe, stage=chosen, store=store, inputs=inputs)


def perform(probe: Probe, *, processes: int = 1, dies: bool = False) -> dict[str, Any]:
    """Run a probe in a process of its own; returns its answer. TrainError when it fails otherwise than it should."""
    answer = Path(probe.answer)
    answer.unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as handle:
        json.dump(to_mapping(probe), handle)
    command = [sys.executable, "-m", "danlu.flow.probe", handle.name]
    try:
        if processes > 1:
            from danlu.train.launch import launch

            with tempfile.TemporaryDirectory() as logs:
                launch(processes, command, logs=Path(logs))
        else:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if dies and done.returncode == -signal.SIGKILL:
                return {}
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
                raise TrainError(f"A trial run failed: {lines[-1]}", "Does the recipe itself run?")
    finally:
        os.unlink(handle.name)
    return read_json(answer)


def main(path: str) -> None:
    """The process that ``perform`` starts."""
    probe = from_mapping(Probe, json.loads(Path(path).read_text(encoding="utf-8")), "probe")
    recipe = load_recipe(Path(probe.recipe), probe.overrides)
    stage = next(one for one in recipe.stages if one.name == probe.stage)
    store = Store(Path(probe.store))
    inputs = {key: store.get(identifier) for key, identifier in probe.inputs.items()}
    config = dataclasses.replace(stage.config, **probe.changes)

    from danlu.train.watch import watching
    from danlu.train.world import World

    with World.from_environment() as world, tempfile.TemporaryDirectory() as output:
        TEAM.set(world)
        context = StageContext(
            inputs={key: artifact.path for key, artifact in inputs.items()},
            output=Path(output),
            work=Path(probe.work),
            seed=recipe.seed,
            events=Events(),
            store=store,
            artifacts=inputs,
        )
        look = _look(probe)
        try:
            with watching(look):
                stage.plugin.run(config, context)
        except _Enough:
            pass
        if world.is_first:
            write_json(Path(probe.answer), look.answer)


class _Enough(Exception):
    """The probe has seen what it wanted."""


def _look(probe: Probe) -> Any:
    """Who looks on, for one probe."""
    from danlu.train.pace import peak_rss_bytes
    from danlu.train.watch import Watch

    class Look(Watch):
        def __init__(self) -> None:
            self.answer: dict[str, Any] = {}
            self._seconds: list[float] = []
            self._tokens: list[int] = []
            self._last = (0, time.perf_counter())

        def has_gradients(self, run: TrainingRun[Any], count: float) -> None:
            if probe.gradients is None:
                return
            _write_gradients(run, Path(probe.gradients))
            self.answer = {"count": count}
            raise _Enough

        def stepped(self, run: TrainingRun[Any]) -> None:
            tokens, now = run.done.tokens, time.perf_counter()
            self._tokens.append(tokens - self._last[0])
            self._seconds.append(now - self._last[1])
            self._last = (tokens, now)
            step = run.done.step
            if step == probe.kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            energy = run.pace.energy()
            self.answer = {
                "losses": run.curve.values("loss"),
                "num_steps": run.num_steps,
                "step_seconds": self._seconds,
                "step_tokens": self._tokens,
                "peak_rss_bytes": peak_rss_bytes(),
                "wh_per_step": energy.value_wh / len(self._seconds),
                "energy_method": energy.method,
                "grid_kg_per_kwh": energy.grid_kg_per_kwh,
            }
            if step >= probe.steps:
                raise _Enough

    return Look()


def _write_gradients(run: TrainingRun[Any], path: Path) -> None:
    from danlu.models.tensors import save_tensors

    if run.job.world.is_first:
        masters = run.weights.masters.items()
        save_tensors({name: master.grad for name, master in masters if master.grad is not None}, path)


if __name__ == "__main__":
    main(sys.argv[1])
