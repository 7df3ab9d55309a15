"""Records of runs: what a recipe did, stage by stage, in ``runs/<id>/run.json`` beside its ``events.jsonl``.

Knows nothing of recipes beyond their names. A run holds a lock while it is alive, so a killed one is seen as stopped.
"""

from __future__ import annotations

import fcntl
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from danlu.core.config import from_mapping, to_mapping
from danlu.core.errors import ConfigError, DataError, StoreError, nearest
from danlu.core.files import read_json, write_json
from danlu.lineage.store import Artifact, Store

RunStatus = Literal["running", "done", "failed", "interrupted", "stopped"]
StageStatus = Literal["waiting", "running", "done", "reused", "failed", "interrupted", "skipped"]


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One stage of a run."""

    name: str
    """Its name in the recipe."""
    use: str
    """Its plugin."""
    status: StageStatus = "waiting"
    """How far it is."""
    artifact: str | None = None
    """What it made or found."""
    seconds: float = 0.0
    """Wall clock in this run; see the manifest for what making the artifact took."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What run.json holds."""

    id: str
    """Start time and a random tail: sorts by time."""
    recipe: str
    """The recipe's name."""
    path: str
    """Where the recipe lay."""
    overrides: tuple[str, ...] = ()
    """KEY=VALUE settings given beside it."""
    seed: int = 0
    """The recipe's seed."""
    status: RunStatus = "running"
    """``stopped``: its process died without saying so."""
    started: str = ""
    """UTC, ISO 8601."""
    seconds: float = 0.0
    """Wall clock."""
    stages: tuple[StageRecord, ...] = ()
    """In the recipe's order."""
    error: str | None = None
    """Why it failed."""
    peak_rss_bytes: int = 0
    """Most memory its processes held at one moment."""
    host: dict[str, Any] | None = None
    """The machine."""

    def artifacts(self) -> dict[str, str]:
        """Stage name to artifact id, of the stages that have one."""
        return {stage.name: stage.artifact for stage in self.stages if stage.artifact}


class RunLog:
    """The record of a run in progress; every change is on disk before it returns."""

    def __init__(self, store: Store, record: RunRecord) -> None:
        self.folder = _folder(store) / record.id
        self.record = record
        self._write()

    def update(self, **changes: Any) -> None:
        """Change fields of the run."""
        self.record = replace(self.record, **changes)
        self._write()

    def update_stage(self, name: str, **changes: Any) -> None:
        """Change fields of one stage."""
        stages = tuple(replace(s, **changes) if s.name == name else s for s in self.record.stages)
        self.update(stages=stages)

    def _write(self) -> None:
        write_json(self.folder / "run.json", to_mapping(self.record))


@contextmanager
def open_run(store: Store, record: RunRecord) -> Iterator[RunLog]:
    """A new run's log; while the block lasts the run counts as alive."""
    with store.locked(f"run-{record.id}"):
        yield RunLog(store, record)


def new_run_id() -> str:
    """Unique, and sorted by time."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"[:-3] + f"-{secrets.token_hex(2)}"


def read_run(store: Store, prefix: str) -> RunRecord:
    """The one run whose id starts with ``prefix``, or the latest for 'latest'."""
    ids = _ids(store)
    matches = ids[-1:] if prefix == "latest" else [identifier for identifier in ids if identifier.startswith(prefix)]
    if not matches:
        raise StoreError(f"There is no run '{prefix}' in {store.root}.", nearest(prefix, ids[-5:]))
    if len(matches) > 1:
        raise StoreError(f"'{prefix}' fits {len(matches)} runs: {', '.join(matches[-5:])}.", "Give more of it.")
    return _read(store, matches[0])


def runs(store: Store) -> list[RunRecord]:
    """All runs, oldest first."""
    return [_read(store, identifier) for identifier in _ids(store)]


def latest_run(store: Store) -> RunRecord | None:
    """The run started last."""
    ids = _ids(store)
    return _read(store, ids[-1]) if ids else None


def resolve(store: Store, text: str) -> Artifact:
    """The artifact meant by an alias, a stage of the latest run, or an id prefix."""
    latest = latest_run(store)
    return store.resolve(text, latest.artifacts() if latest else None)


def _folder(store: Store) -> Path:
    return store.root / "runs"


def _ids(store: Store) -> list[str]:
    folder = _folder(store)
    return sorted(path.parent.name for path in folder.glob("*/run.json")) if folder.is_dir() else []


def _read(store: Store, identifier: str) -> RunRecord:
    path = _folder(store) / identifier / "run.json"
    try:
        record = from_mapping(RunRecord, read_json(path), "run")
    except (DataError, ConfigError) as error:
        raise StoreError(f"{path} is damaged: {error.message}", f"Remove {path.parent}; artifacts stay.") from error
    if record.status == "running" and not _is_alive(store, identifier):
        return replace(record, status="stopped")
    return record


def _is_alive(store: Store, identifier: str) -> bool:
    with store.lock_file(f"run-{identifier}") as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
