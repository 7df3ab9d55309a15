"""The manifest of an artifact (where it came from, what is in it, what it cost), and its id over content and inputs.

Knows nothing of folders being built or of stores; it describes one finished folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from danlu.core.config import from_mapping, to_mapping
from danlu.core.errors import ConfigError, DataError, StoreError
from danlu.core.files import read_json, sha256_file, sha256_json

MANIFEST = "manifest.json"
ID_LENGTH = 20


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of an artifact."""

    sha256: str
    """Hex sha256 of its bytes."""
    size: int
    """Bytes."""


@dataclass(frozen=True, kw_only=True)
class Energy:
    """What a stage drew from the socket, and the carbon that stands for."""

    value_wh: float
    """Watt-hours."""
    method: str
    """``measured`` (the processor's own counters, whole machine) or ``estimated`` (busy seconds times a constant)."""
    grid_kg_per_kwh: float
    """Carbon intensity of the electricity, an input: kg of CO2 equivalent per kWh."""
    gco2: float
    """Grams of CO2 equivalent: energy times intensity."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """The code that made an artifact."""

    version: str
    """Package version."""
    commit: str | None = None
    """Git commit when run from a checkout."""
    dirty: bool = False
    """Whether tracked files differed from that commit."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Everything that decides what a stage makes, besides its code: what a stage's key hashes."""

    stage: str
    """The plugin that made it."""
    version: int
    """The plugin's version; raised when it would make something else from the same config."""
    config: dict[str, Any]
    """The resolved config."""
    seed: int | None
    """None when the stage uses no randomness."""
    inputs: dict[str, str]
    """Input name to artifact id."""

    @property
    def key(self) -> str:
        """The same for two stages that must make the same thing."""
        return sha256_json(to_mapping(self))[:40]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What making an artifact took."""

    seconds: float
    """Wall clock of the attempt that finished."""
    energy: Energy
    """Estimated or measured; see ``Energy.method``."""
    attempts: int = 1
    """More than 1 when earlier attempts were stopped and this one went on from their checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What manifest.json holds."""

    id: str
    """First hex digits of sha256 over kind, origin and files: equal ids mean equal content made the same way."""
    kind: str
    """What it is: data, model, adapter, evaluation, report, …"""
    name: str
    """Name of the stage in the recipe that first made it."""
    origin: Origin
    """How it was made."""
    files: dict[str, FileEntry]
    """Relative path to hash and size."""
    metrics: dict[str, Any]
    """Numbers the stage reported."""
    cost: Cost
    """Time and energy."""
    code: Code
    """The code that made it."""
    host: dict[str, Any] = field(default_factory=dict[str, Any])
    """The machine it was made on."""
    created: str = ""
    """UTC time of publication, ISO 8601."""

    @property
    def size_bytes(self) -> int:
        """Sum of all files."""
        return sum(entry.size for entry in self.files.values())


def artifact_id(kind: str, origin: Origin, files: Mapping[str, FileEntry]) -> str:
    """The id: a hash over content and, through the input ids, over everything it was made from. Times are not in it."""
    listing = {path: to_mapping(entry) for path, entry in files.items()}
    return sha256_json({"kind": kind, "origin": to_mapping(origin), "files": listing})[:ID_LENGTH]


def hash_folder(folder: Path) -> dict[str, FileEntry]:
    """Every file below ``folder`` except the manifest; StoreError on a link, which would escape the hash."""
    files: dict[str, FileEntry] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise StoreError(f"{path} is a link; an artifact holds plain files only.", "Copy the file it points to.")
        relative = path.relative_to(folder).as_posix()
        if path.is_file() and relative != MANIFEST:
            files[relative] = FileEntry(sha256=sha256_file(path), size=path.stat().st_size)
    return files


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a published folder; StoreError when it is missing or unreadable."""
    path = folder / MANIFEST
    advice = f"Remove {folder} and run the recipe again: it will be made anew."
    if not path.is_file():
        raise StoreError(f"Artifact {folder.name} has no {MANIFEST}.", advice)
    try:
        values = read_json(path)
        if not isinstance(values, dict):
            raise StoreError(f"{path} is not a mapping.", advice)
        return from_mapping(Manifest, values, "manifest")
    except (DataError, ConfigError) as error:
        raise StoreError(f"The manifest of artifact {folder.name} is damaged: {error.message}", advice) from error
