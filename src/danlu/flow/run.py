"""Run a recipe: every stage in order, each reused when its inputs, config and seed are unchanged; all of it recorded.

Knows nothing of what stages do, of terminals (a ``Display`` draws) or of the environment.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from danlu.core.config import to_mapping
from danlu.core.errors import DanluError
from danlu.core.events import Display, Events
from danlu.core.files import disk_errors, read_json, write_json
from danlu.core.memory import release_memory
from danlu.flow import summary
from danlu.flow.memory import PeakMemory
from danlu.flow.recipe import PluginLoader, Recipe, Stage, load_recipe, load_stage
from danlu.flow.team import tell_made, tell_training
from danlu.flow.words import duration, headline
from danlu.lineage.host import host_facts
from danlu.lineage.runs import RunLog, RunRecord, StageRecord, new_run_id, open_run
from danlu.lineage.stage import StageContext, run_stage
from danlu.lineage.store import Artifact, Store


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a finished run made."""

    recipe: Recipe
    """As checked, overrides applied."""
    record: RunRecord
    """What runs/<id>/run.json says."""
    artifacts: Mapping[str, Artifact]
    """Stage name to artifact."""
    reused: frozenset[str]
    """Stages that had nothing to do."""
    store: Store
    """Where everything lies."""

    @property
    def id(self) -> str:
        """The run's id."""
        return self.record.id


def run(
    recipe: str | Path,
    *overrides: str,
    serve: bool = False,
    store: Store | None = None,
    display: Display | None = None,
    load_plugin: PluginLoader = load_stage,
    until: str | None = None,
) -> RunResult:
    """Run a recipe file with KEY=VALUE overrides. With ``serve`` its service stage runs last and keeps running; with
    ``until`` it ends before that stage, and sets no alias.

    Raises ConfigError before anything runs when the recipe cannot be right; else what the failing stage raised.
    Running it again goes on where it stopped.
    """
    store = store or Store(Path(".danlu"))
    checked = load_recipe(Path(recipe), overrides, load_plugin)
    for stage in checked.stages:
        if serve or not stage.plugin.service:
            stage.plugin.check(stage.config)
    record = RunRecord(
        id=new_run_id(),
        recipe=checked.name,
        path=str(recipe),
        overrides=checked.overrides,
        seed=checked.seed,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        stages=tuple(StageRecord(name=s.name, use=s.use) for s in checked.stages),
        host=host_facts(),
    )
    with disk_errors(store.root), open_run(store, record) as log:
        events = Events(log.folder / "events.jsonl", display)
        return _Run(checked, store, log, events).execute(serve, until)


class _Run:
    """One execution; holds what the stages share."""

    def __init__(self, recipe: Recipe, store: Store, log: RunLog, events: Events) -> None:
        self.recipe, self.store, self.log, self.events = recipe, store, log, events
        self.artifacts: dict[str, Artifact] = {}
        self.reused: set[str] = set()
        self.started = time.perf_counter()
        self.memory = PeakMemory()

    def execute(self, serve: bool, until: str | None = None) -> RunResult:
        try:
            for number, stage in enumerate(self.recipe.stages, start=1):
                if stage.name == until:
                    self._close(status="done")
                    return self._result()
                if stage.plugin.service:
                    break
                self._make(stage, number)
            for alias, name in self.recipe.aliases.items():
                self.store.set_alias(alias, self.artifacts[name].id)
            result = self._finish()
            last = self.recipe.stages[-1]
            if last.plugin.service:
                self._serve(last, serve)
            return result
        finally:
            self.memory.stop()

    def _make(self, stage: Stage, number: int) -> None:
        self.events.log("stage", name=stage.name, status="running")
        self.log.update_stage(stage.name, status="running")
        label = f"[{number}/{len(self.recipe.stages)}] {stage.name}"
        started = time.perf_counter()
        with self._recorded(stage):
            inputs = {key: self.artifacts[name] for key, name in stage.inputs.items()}
            config = {**to_mapping(stage.config), **stage.plugin.fingerprint(stage.config)}
            artifact, is_reused = run_stage(
                self.store,
                name=stage.name,
                kind=stage.plugin.kind_of(stage.config),
                stage=stage.use,
                version=stage.plugin.version,
                config=config,
                inputs=inputs,
                seed=self.recipe.seed if stage.plugin.uses_seed else None,
                body=lambda context: self._body(stage, label, context),
                events=self.events,
                grid_kg_per_kwh=self.recipe.grid_kg_per_kwh,
            )
        seconds = round(time.perf_counter() - started, 3)
        self.artifacts[stage.name] = artifact
        tell_made(artifact)
        if is_reused:
            self.reused.add(stage.name)
        status = "reused" if is_reused else "done"
        self.log.update_stage(stage.name, status=status, artifact=artifact.id, seconds=seconds)
        self.events.log("stage", name=stage.name, status=status, artifact=artifact.id, seconds=seconds)
        took = "unchanged, reused" if is_reused else duration(seconds)
        numbers = headline(artifact.manifest.metrics)
        self.events.display.say(f"✓ {label}  {took}  → {artifact.id[:10]}  {numbers}".rstrip())

    def _body(self, stage: Stage, label: str, context: StageContext) -> dict[str, Any]:
        self.events.display.say(f"▸ {label}")
        if stage.plugin.trains:
            tell_training(context)
        try:
            return stage.plugin.run(stage.config, context)
        finally:
            release_memory()

    @contextmanager
    def _recorded(self, stage: Stage) -> Iterator[None]:
        """Whatever stops the stage is in the run's record before it goes on to the caller."""
        started = time.perf_counter()
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
            status = "interrupted" if stopped else "failed"
            what = error.message if isinstance(error, DanluError) else f"{type(error).__name__}: {error}".rstrip(": ")
            self.events.log("stage", name=stage.name, status=status, error=what)
            self.log.update_stage(stage.name, status=status, seconds=round(time.perf_counter() - started, 3))
            self._close(status=status, error=f"{stage.name}: {what}")
            self.events.say(f"✗ {stage.name} {status}. What is finished is kept; the same command goes on from here.")
            raise

    def _close(self, **changes: Any) -> None:
        seconds = round(time.perf_counter() - self.started, 3)
        self.log.update(seconds=seconds, peak_rss_bytes=self.memory.peak_bytes(), **changes)

    def _result(self) -> RunResult:
        return RunResult(
            recipe=self.recipe,
            record=self.log.record,
            artifacts=self.artifacts,
            reused=frozenset(self.reused),
            store=self.store,
        )

    def _finish(self) -> RunResult:
        self._close(status="done")
        result = self._result()
        if self.recipe.summary is not None:
            path = self.store.root / self.recipe.summary.path
            write_json(path, self._summary(result, self.recipe.summary.values, path))
            self.events.say(f"Numbers: {path}")
        for artifact in self.artifacts.values():
            if artifact.manifest.kind == "report":
                self.events.say(f"Report:  {artifact.path / 'report.html'}")
        return result

    def _summary(self, result: RunResult, values: Mapping[str, str], path: Path) -> dict[str, Any]:
        """The recipe's numbers; a run that made nothing keeps the peak memory of the one that did."""
        numbers = summary.summarise(result, values)
        if len(self.reused) == len(self.artifacts) and path.is_file():
            earlier = read_json(path)
            if isinstance(earlier, dict) and earlier.get("artifacts") == numbers["artifacts"]:
                numbers["peak_rss_bytes"] = earlier.get("peak_rss_bytes", numbers["peak_rss_bytes"])
        return numbers

    def _serve(self, stage: Stage, serve: bool) -> None:
        if not serve:
            self.log.update_stage(stage.name, status="skipped")
            return
        self.log.update_stage(stage.name, status="running")
        scratch = self.log.folder / stage.name
        scratch.mkdir()
        inputs = {key: self.artifacts[name] for key, name in stage.inputs.items()}
        context = StageContext(
            inputs={key: artifact.path for key, artifact in inputs.items()},
            output=scratch,
            work=scratch,
            seed=self.recipe.seed,
            events=self.events,
            store=self.store,
            artifacts=inputs,
        )
        try:
            stage.plugin.run(stage.config, context)
        except KeyboardInterrupt:
            self.events.say("Stopped serving.")
        self.log.update_stage(stage.name, status="done")
