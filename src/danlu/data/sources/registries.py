"""Where a package of a registry lies, asked of the user's own client: pip, npm or apt.

So the user's index, mirror and credentials settings hold, and no host is named here. Nothing is downloaded, installed
or run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from danlu.core.errors import FetchError

Registry = Literal["pypi", "npm", "apt"]
Resolve = Callable[[str, str], str]
"""Package name and version to the URL of its file."""

SETTINGS: Mapping[Registry, str] = {
    "pypi": "pip's index settings (pip config list)",
    "npm": "npm's settings (npm config list)",
    "apt": "apt's sources (apt-get update as root, apt-cache policy)",
}
"""What to look at when a registry does not answer."""


def ask_pip(package: str, version: str) -> str:
    """The wheel's URL according to this Python's pip and its settings; FetchError when pip cannot tell."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps"),
            *("--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--no-input"),
            *("--report", str(report), f"{package}=={version}"),
        ]
        _ask("pip", command, f"{package}=={version}")
        return json.loads(report.read_text(encoding="utf-8"))["install"][0]["download_info"]["url"]


def ask_npm(package: str, version: str) -> str:
    """The tarball's URL according to npm and its settings; FetchError when npm cannot tell."""
    wanted = f"{package}@{version}"
    url = _ask("npm", ["npm", "view", wanted, "dist.tarball"], wanted).strip()
    if "://" not in url:  # npm ends well when a version does not exist
        raise FetchError(f"npm could not find {wanted}: it named no file.")
    return url


def ask_apt(package: str, version: str) -> str:
    """The .deb's URL according to apt and its sources; FetchError when apt cannot tell."""
    wanted = f"{package}={version}"
    said = _ask("apt-get", ["apt-get", "download", "--print-uris", wanted], wanted)
    found = re.search(r"^'([^']+)'", said, flags=re.MULTILINE)
    if found is None:
        raise FetchError(f"apt-get could not find {wanted}: it named no file.")
    return found.group(1)


RESOLVERS: Mapping[Registry, Resolve] = {"pypi": ask_pip, "npm": ask_npm, "apt": ask_apt}


def _ask(client: str, command: Sequence[str], wanted: str) -> str:
    """What a client says; FetchError with its last words when it fails or is not there."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise FetchError(f"{wanted} needs {client}, which is not installed.") from error
    if ran.returncode != 0:
        said = [line.strip() for line in ran.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise FetchError(f"{client} could not find {wanted}: {said[-1].rstrip('.')}.")
    return ran.stdout
