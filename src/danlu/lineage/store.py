"""The store: folders named by what is in them, aliases that point to them. A folder under ``artifacts/`` is whole.

    artifacts/<id>/      an artifact: its files and manifest.json
    aliases/<name>       a name for an artifact id
    keys/<key>.json      which artifact a stage with these inputs made (lineage/stage.py)
    work/<key>/          a stage being made
    runs/<id>/           what a recipe did (lineage/runs.py)

Knows nothing of recipes or of what stages do.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from danlu.core.config import to_mapping
from danlu.core.errors import StoreError, nearest
from danlu.core.files import atomic_write, disk_errors, sha256_file, sync_folder, write_json
from danlu.lineage.manifest import MANIFEST, Manifest, artifact_id, read_manifest

_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PREFIX = re.compile(r"[0-9a-f]{4,40}")


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A published folder and its manifest."""

    path: Path
    """The folder."""
    manifest: Manifest
    """What manifest.json says."""

    @property
    def id(self) -> str:
        """Its content address."""
        return self.manifest.id

    def problem(self) -> str | None:
        """What is visibly wrong (a file missing or of another size), or None. Hashes nothing; see ``Store.verify``."""
        for name, entry in self.manifest.files.items():
            try:
                size = (self.path / name).stat().st_size
            except OSError:
                return f"{name} is missing"
            if size != entry.size:
                return f"{name} has {size} bytes instead of {entry.size}"
        return None


class Store:
    """Artifacts and aliases below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    # artifacts

    def folder(self, identifier: str) -> Path:
        """Where an artifact with this exact id lies, or would lie."""
        return self.root / "artifacts" / identifier

    def get(self, identifier: str) -> Artifact:
        """The artifact with this exact id; StoreError when missing or visibly damaged."""
        folder = self.folder(identifier)
        if not folder.is_dir():
            raise StoreError(f"There is no artifact {identifier} in {self.root}.", "`danlu runs` lists what there is.")
        artifact = Artifact(path=folder, manifest=read_manifest(folder))
        problem = artifact.problem()
        if problem:
            raise StoreError(f"Artifact {identifier} is damaged: {problem}.", _remake(folder))
        return artifact

    def find(self, prefix: str) -> Artifact:
        """The one artifact whose id starts with ``prefix`` (at least 4 hex digits)."""
        matches = [identifier for identifier in self.ids() if identifier.startswith(prefix)]
        if len(matches) > 1:
            raise StoreError(f"'{prefix}' fits {len(matches)} artifacts: {', '.join(matches)}.", "Give more digits.")
        if not matches:
            raise StoreError(f"No artifact id starts with '{prefix}'.", "`danlu runs` lists what there is.")
        return self.get(matches[0])

    def ids(self) -> list[str]:
        """Ids of all artifacts."""
        folder = self.root / "artifacts"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def publish(self, folder: Path, manifest: Manifest) -> Artifact:
        """Turn a finished folder into an artifact: files to disk, manifest last, then one rename.

        An equal artifact that is already whole is kept and ``folder`` removed.
        """
        assert manifest.id == artifact_id(manifest.kind, manifest.origin, manifest.files)
        target = self.folder(manifest.id)
        with disk_errors(target):
            for name in manifest.files:
                _sync_file(folder / name)
            write_json(folder / MANIFEST, to_mapping(manifest))
            return self.adopt(folder)

    def adopt(self, folder: Path) -> Artifact:
        """Move a folder that has its manifest to its place; the last step of ``publish``, also taken after a crash."""
        manifest = read_manifest(folder)
        target = self.folder(manifest.id)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            try:
                existing = self.get(manifest.id)
            except StoreError:
                shutil.rmtree(target)  # damaged: what was just made replaces it
            else:
                shutil.rmtree(folder)
                return existing
        os.rename(folder, target)
        sync_folder(target.parent)
        return Artifact(path=target, manifest=manifest)

    def verify(self, identifier: str) -> Artifact:
        """Hash every file and the manifest again; StoreError names the first that differs."""
        artifact = self.get(identifier)
        manifest = artifact.manifest
        for name, entry in manifest.files.items():
            if sha256_file(artifact.path / name) != entry.sha256:
                raise StoreError(f"Artifact {manifest.id} is damaged: {name} has changed.", _remake(artifact.path))
        if artifact_id(manifest.kind, manifest.origin, manifest.files) != artifact.path.name:
            raise StoreError(f"The manifest of artifact {artifact.path.name} has changed.", _remake(artifact.path))
        return artifact

    # aliases

    def set_alias(self, name: str, identifier: str, expected: str | Literal["any"] | None = "any") -> None:
        """Point ``name`` to an artifact; with ``expected`` only if it points there now (None: nowhere)."""
        if not _ALIAS.fullmatch(name):
            raise StoreError(f"'{name}' cannot be an alias.", "Use letters, digits, dot, dash and underscore.")
        self.get(identifier)
        with self.locked(f"alias-{name}"):
            current = self.aliases().get(name)
            if expected != "any" and current != expected:
                raise StoreError(f"Alias '{name}' points to {current}, not {expected}.", "Look again, then set it.")
            with atomic_write(self.root / "aliases" / name) as handle:
                handle.write(identifier + "\n")

    def aliases(self) -> dict[str, str]:
        """Every alias and its artifact id."""
        folder = self.root / "aliases"
        if not folder.is_dir():
            return {}
        return {p.name: p.read_text(encoding="utf-8").strip() for p in sorted(folder.iterdir()) if p.name[0] != "."}

    def resolve(self, text: str, stages: dict[str, str] | None = None) -> Artifact:
        """The artifact meant by an alias, a name in ``stages`` (the latest run's: name to id), or an id prefix."""
        aliases, stages = self.aliases(), stages or {}
        if text in aliases:
            return self.get(aliases[text])
        if text in stages:
            return self.get(stages[text])
        if _PREFIX.fullmatch(text) and any(identifier.startswith(text) for identifier in self.ids()):
            return self.find(text)
        known = {*aliases, *stages}
        hint = nearest(text, known) if known else "Run a recipe first: danlu run RECIPE."
        raise StoreError(f"Nothing in {self.root} is called '{text}'.", hint)

    # locks

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold the lock ``name``; the kernel frees it when the process dies, however it dies."""
        with self.lock_file(name) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield

    @contextmanager
    def lock_file(self, name: str) -> Iterator[int]:
        """A file to lock, open. It is never removed: removing one that another process opened would split the lock."""
        path = self.root / "locks" / name
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remake(folder: Path) -> str:
    return f"Remove {folder} and run the recipe again: it will be made anew."
