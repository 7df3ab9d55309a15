"""Run one stage: the same inputs, config and seed give the artifact made before; anything else is made and recorded.

Knows nothing of recipes or plugins: it gets a body to call. A killed body starts again with an empty ``output`` and
whatever it left in ``work``.
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from danlu.core.config import to_mapping
from danlu.core.errors import DanluError, DataError, StoreError
from danlu.core.events import Events
from danlu.core.files import disk_errors, read_json, write_json
from danlu.lineage.energy import GRID_KG_PER_KWH, EnergyMeter
from danlu.lineage.host import code_version, host_facts
from danlu.lineage.manifest import MANIFEST, Cost, Manifest, Origin, artifact_id, hash_folder, read_manifest
from danlu.lineage.store import Artifact, Store


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What a stage's body gets."""

    inputs: Mapping[str, Path]
    """Input name to artifact folder; read only."""
    output: Path
    """An empty folder; what the body leaves in it becomes the artifact."""
    work: Path
    """Scratch that survives ``kill -9`` (checkpoints); removed once the artifact is published."""
    seed: int
    """For all randomness of the body."""
    events: Events
    """For progress and messages."""
    store: Store
    """To follow lineage beyond the direct inputs; never to write."""
    artifacts: Mapping[str, Artifact]
    """Input name to artifact: the manifests of ``inputs``."""


Body = Callable[[StageContext], dict[str, Any]]
"""Makes the files in ``context.output``; returns metrics."""


def run_stage(
    store: Store,
    *,
    name: str,
    kind: str,
    stage: str,
    version: int,
    config: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    seed: int | None,
    body: Body,
    events: Events,
    grid_kg_per_kwh: float = GRID_KG_PER_KWH,
) -> tuple[Artifact, bool]:
    """The stage's artifact, and whether it was there already.

    Raises what the body raises; a full disk becomes a ResourceError whatever library met it.
    """
    input_ids = {key: artifact.id for key, artifact in inputs.items()}
    origin = Origin(stage=stage, version=version, config=dict(config), seed=seed, inputs=input_ids)
    made = made_before(store, origin)
    if made is not None:
        return made, True
    with _alone(store, origin.key, name, events):
        made = made_before(store, origin, events) or _finish_publishing(store, origin)
        if made is not None:
            return made, True
        return _make(store, name, kind, origin, inputs, body, events, grid_kg_per_kwh), False


def made_before(store: Store, origin: Origin, events: Events | None = None) -> Artifact | None:
    """The whole artifact made from ``origin`` before, if any. Checks presence and sizes; tells ``events`` of damage."""
    path = _key_file(store, origin.key)
    if not path.is_file():
        return None
    try:
        return store.get(str(read_json(path)["artifact"]))
    except (StoreError, DataError, KeyError, TypeError) as error:
        if events is not None and not _work_folder(store, origin.key).exists():
            what = error.message if isinstance(error, DanluError) else f"{path} is damaged."
            events.say(f"{what} Making it again.")
        return None


@contextmanager
def _alone(store: Store, key: str, name: str, events: Events) -> Iterator[None]:
    """Hold the key's lock; says so when another process holds it."""
    with store.lock_file(f"key-{key}") as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            events.say(f"Another process is making '{name}' from the same inputs; waiting for it.")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _make(
    store: Store,
    name: str,
    kind: str,
    origin: Origin,
    inputs: Mapping[str, Artifact],
    body: Body,
    events: Events,
    grid_kg_per_kwh: float,
) -> Artifact:
    folder = _work_folder(store, origin.key)
    output, work = folder / "output", folder / "work"
    with disk_errors(folder):
        if output.exists():
            shutil.rmtree(output)
        output.mkdir(parents=True)
        work.mkdir(exist_ok=True)
        attempts = _count_attempt(folder)
    context = StageContext(
        inputs={key: artifact.path for key, artifact in inputs.items()},
        output=output,
        work=work,
        seed=origin.seed or 0,
        events=events,
        store=store,
        artifacts=inputs,
    )
    meter, started = EnergyMeter(grid_kg_per_kwh), time.perf_counter()
    with _full_disk(folder):
        metrics = body(context)
    cost = Cost(seconds=round(time.perf_counter() - started, 3), energy=meter.stop(), attempts=attempts)
    json.dumps(metrics)  # a body that returns what JSON cannot hold is our bug; meet it before publishing
    files = hash_folder(output)
    if not files:
        raise StoreError(f"Stage '{name}' wrote no files.", "Make it write at least one file into its output folder.")
    manifest = Manifest(
        id=artifact_id(kind, origin, files),
        kind=kind,
        name=name,
        origin=origin,
        files=files,
        metrics=metrics,
        cost=cost,
        code=code_version(),
        host=host_facts(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return _publish(store, origin, output, manifest)


def _publish(store: Store, origin: Origin, output: Path, manifest: Manifest) -> Artifact:
    """The key goes first: if we die before the rename it points nowhere, and ``_finish_publishing`` renames."""
    write_json(_key_file(store, origin.key), {"artifact": manifest.id, "origin": to_mapping(origin)})
    artifact = store.publish(output, manifest)
    shutil.rmtree(_work_folder(store, origin.key))
    return artifact


def _finish_publishing(store: Store, origin: Origin) -> Artifact | None:
    """An output whose manifest is written was whole when its maker died: only the rename is missing."""
    output = _work_folder(store, origin.key) / "output"
    if not (output / MANIFEST).is_file():
        return None
    manifest = read_manifest(output)
    if manifest.origin != origin or Artifact(path=output, manifest=manifest).problem():
        return None
    artifact = store.adopt(output)
    write_json(_key_file(store, origin.key), {"artifact": artifact.id, "origin": to_mapping(origin)})
    shutil.rmtree(_work_folder(store, origin.key))
    return artifact


def _count_attempt(folder: Path) -> int:
    """One more byte for each attempt; returns how many there were."""
    with open(folder / "attempts", "ab") as handle:
        handle.write(b".")
        return handle.tell()


@contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """``disk_errors``, also for libraries that wrap ENOSPC in errors of their own."""
    try:
        with disk_errors(folder):
            yield
    except DanluError:
        raise
    except Exception as error:
        if "No space left on device" not in str(error):
            raise
        with disk_errors(folder):
            raise OSError(errno.ENOSPC, "No space left on device") from error


def _key_file(store: Store, key: str) -> Path:
    return store.root / "keys" / f"{key}.json"


def _work_folder(store: Store, key: str) -> Path:
    return store.root / "work" / key
